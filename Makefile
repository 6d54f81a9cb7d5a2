# Every target works in a checkout with the package installed: pip install -e ".[dev]"
.PHONY: check test slow faults parity bench golden demo docs docs-run reproduce scale

check:
	ruff check . && ruff format --check . && pyright loopjax

test:
	python -m pytest -n 2 --dist loadscope

slow:
	python -m pytest -m "slow and not gpu"

faults:
	python -m pytest -m faults

parity:
	python -m pytest -m parity

bench: # pip install -e ".[bench]"
	python scripts/bench/suite.py

golden:
	python -m scripts.goldens.encoders

demo:
	loopjax demo -o out/demo

docs: # pip install -e ".[docs]"
	python -m mkdocs build --strict

docs-run: # every tutorial and notebook, as a reader would
	python -m scripts.docs.run

reproduce: # the README's tables with the versions of constraints.txt, in an environment of their own
	python3 -m venv .reproduce-venv
	.reproduce-venv/bin/pip install --quiet -c constraints.txt ".[report,eval]"
	.reproduce-venv/bin/python -m scripts.reproduce

scale: # batches, feeding, fit and score up to two million rows; 4 GB of temporary files, under 25 minutes
	python -m pytest -q tests/embedding/test_features.py -k "little_more or no_device"
	python scripts/bench/decoding.py --loops 100
	python scripts/bench/packed.py --loops 200
	python scripts/bench/simulate.py --validate
	python scripts/bench/scale.py --width 128
	python scripts/bench/scale.py --kinds pca
	python scripts/bench/scale.py --kinds pca --width 344 --rows 200000 2000000 --memory

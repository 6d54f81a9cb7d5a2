#!/usr/bin/env bash
# Checks and times loopjax on one GPU, the most valuable rows first, in ten minutes at most:
#
#     bash scripts/gpu_check.sh                        # rows to scripts/bench/results/gpu_check.jsonl
#     bash scripts/gpu_check.sh --rows FILE parity     # another file, these sections alone
#     bash scripts/gpu_check.sh --rehearse             # the same sections, small, on a CPU (CI)
#
# A machine that reaches nothing outside needs what its image lacks as wheels, fetched elsewhere:
#
#     bash scripts/gpu_check.sh --carry wheels         # fills the folder, for Python 3.12 on x86-64
#     bash scripts/gpu_check.sh --wheels wheels        # there: installs them beside, then checks
#
# Needed there: jax with CUDA, flax, optax, orbax; torch and transformers for their sections. Every
# section is a process of its own under a time limit; each row is one JSON line, written at once.
# Exit code 1 names the sections that failed or ran out of time. PYTHON=... chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

# Section, module and seconds; ceilings first, because they tell a sick machine.
sections=(ceilings:ceilings:30 parity:parity:90 encoder:encoder:140 finetuning:finetuning:80
    transformers:peers:70 end-to-end:end_to_end:80 heads:heads:60 trace:trace:50)
carried=(soundfile soxr cffi pycparser pydantic pydantic-core annotated-types typing-inspection platformdirs)

carry() { # wheels that the usual CUDA images lack, into folder $1
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "$1" "${carried[@]}"
    du -sh "$1"
}

python=${PYTHON:-python3}
rows=scripts/bench/results/gpu_check.jsonl
rehearse=()
chosen=" "
slack=1
while [ $# -gt 0 ]; do
    case $1 in
    --rehearse) rehearse=(--rehearse) ;;
    --rows) rows=$2 && shift ;;
    --carry) carry "$2" && exit || exit 1 ;;
    --wheels)
        site=$(mktemp -d)
        "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$2"/*.whl || exit 1
        export PYTHONPATH=$site:${PYTHONPATH:-}
        shift
        ;;
    --*) echo "unknown option $1; see the head of $0" >&2 && exit 2 ;;
    *) chosen+="$1 " ;;
    esac
    shift
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD:$PWD/scripts/bench:${PYTHONPATH:-}
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/programs}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1
if [ ${#rehearse[@]} -gt 0 ]; then
    export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
    rows=$work/rows.jsonl
    slack=6 # the limits are those of a GPU; a busy CPU still ends
fi
mkdir -p "$(dirname "$rows")"
: >"$rows"

failed=()
for section in "${sections[@]}"; do
    IFS=: read -r name module limit <<<"$section"
    limit=$((limit * slack))
    [[ $chosen == " " || $chosen == *" $name "* ]] || continue
    if [ "$module" = peers ] && ! "$python" -c 'import torch, transformers' 2>/dev/null; then
        echo "== $name skipped: no torch or no transformers here"
        continue
    fi
    if [ "$module" = heads ] && ! "$python" -c 'import torch' 2>/dev/null; then
        echo "== $name skipped: no torch here"
        continue
    fi
    echo "== $name, at most $limit s"
    before=$(wc -l <"$rows")
    started=$SECONDS
    flags=${XLA_FLAGS:-}
    # Its programs are many and run a few times: the first algorithm will do.
    [ "$module" != parity ] || flags+=" --xla_gpu_autotune_level=0"
    XLA_FLAGS=$flags timeout "$limit" "$python" -m "scripts.gpu_check.$module" "${rehearse[@]}" --rows "$rows" |
        tee >(grep --line-buffered '^{' >>"$rows")
    code=${PIPESTATUS[0]}
    sleep 0.2 # the rows' writer ends after its reader
    count=$(($(wc -l <"$rows") - before))
    echo "== $name: $count rows in $((SECONDS - started)) s, exit code $code"
    [ "$code" = 0 ] && [ "$count" -gt 0 ] || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
echo "all sections passed"

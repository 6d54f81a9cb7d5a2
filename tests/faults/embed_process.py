"""`python -m tests.faults.embed_process SRC OUT [key=value ...]`: a run that tests can kill.

Keys: `batch_s` slows each batch down, `fsize` limits the size of written files from the sixth
batch on, `restart`, the processes of one run (`coordinator`, `processes`, `index`), `unit_files`
and `lease_s` of a worker, and any field of EmbedConfig. Exit codes are those of the command line.
"""

import itertools
import json
import resource
import signal
import sys

from loopjax.config import EmbedConfig
from loopjax.errors import LoopjaxError
from tests.fake_encoder import FakeEncoder, slow_fake


def main(source: str, out: str, *settings: str) -> int:
    """Embeds and prints the summary as JSON."""
    values = {k: json.loads(v) for k, _, v in (s.partition("=") for s in settings)}
    batch_s, fsize = values.pop("batch_s", 0.0), values.pop("fsize", 0)
    restart = values.pop("restart", False)
    place = [values.pop(name, None) for name in ("coordinator", "processes", "index")]
    worker = {name: values.pop(name) for name in ("unit_files", "lease_s") if name in values}
    from loopjax import parallel
    from loopjax.embedding.chain import embed_corpus, embed_shared

    options = EmbedConfig(**({"workers": 1, "batch_size": 4, "shard_rows": 16} | values))
    try:
        with parallel.joined(*place):
            encoder = slow_fake(batch_s)
            if fsize:
                limit_files(encoder, fsize)
            if worker:
                summary = embed_shared([source], encoder, out, options, progress=False, **worker)
            else:
                summary = embed_corpus(
                    [source], encoder, out, options, restart=restart, progress=False
                )
    except LoopjaxError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(vars(summary)) + "\n")
    return 3 if summary.n_failed else 0


def limit_files(encoder: FakeEncoder, size: int) -> None:
    """Written files may have so many bytes only, from the sixth batch on."""
    plain, n_batches = encoder.encode, itertools.count()

    def encode(mel, longer):
        if next(n_batches) == 6:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return plain(mel, longer)

    encoder.encode = encode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

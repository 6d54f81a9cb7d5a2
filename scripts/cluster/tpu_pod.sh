#!/usr/bin/env bash
# Embeds a corpus on every host of a TPU pod slice.
#
#     scripts/cluster/tpu_pod.sh POD ZONE MOUNT/loops MOUNT/emb [options of `loopjax embed`]
#
# loopjax must be installed on the hosts (pip install "loopjax[tpu]") and MOUNT be the same shared
# folder on all of them, such as a bucket mounted with gcsfuse.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: tpu_pod.sh POD ZONE SRC OUT [options of loopjax embed]" >&2
    exit 2
fi
printf -v command '%q ' loopjax embed "$3" -o "$4" --coordinator auto "${@:5}"
exec gcloud compute tpus tpu-vm ssh "$1" --zone "$2" --worker=all --command "$command"

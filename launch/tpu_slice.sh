#!/usr/bin/env bash
# Runs an experiment on a TPU slice of Google Cloud, from your own machine: requests the slice as a
# queued resource, starts the same command on all of its hosts, and requests it again when a spot
# slice was preempted. The options of `rft-jax run` follow the name of the script:
#
#   NAME=math ZONE=us-east5-a TYPE=v5p-32 RUNTIME=v2-alpha-tpuv5 SPOT=1 \
#   REPO=https://HOST/OWNER/rft_jax REVISION=COMMIT SHARE=10.0.0.2:/share \
#   EXPERIMENT=experiments/math_deepseekmath_7b.py launch/tpu_slice.sh --only online_rft
#
# Output is in the journal of each host, and WORKDIR on the share:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 --command='journalctl -fu rft-jax'
# Stop and save: Ctrl-C here, then the same with
#   --worker=all --command='sudo systemctl stop rft-jax'
set -euo pipefail

: "${NAME:?of the slice, its queued resource and its folder on the share}"
: "${ZONE:?such as us-east5-a}"
: "${TYPE:?accelerator type, such as v5litepod-16, v5p-32 or v6e-16}"
: "${RUNTIME:?v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e}"
: "${REPO:?URL of the repository, which every host can clone}"
: "${REVISION:?commit or tag: a branch may have moved when a slice is recreated}"
: "${SHARE:?HOST:/PATH of an NFS share (Filestore) in the same network}"
: "${EXPERIMENT:?path of the experiment file in the repository}"
SPOT=${SPOT:-}              # not empty: a spot slice
RESTARTS=${RESTARTS:-50}    # at most, of the command
ENVIRONMENT=${ENVIRONMENT:-} # for the command: "NAME=VALUE NAME=VALUE"

queue() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" --quiet "${@:2}"; }
on_all() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --quiet --worker=all --command="$1"
}

wait_until_ready() {
    local state
    while true; do
        state=$(queue describe --format='value(state.state)' 2>/dev/null) || state=NONE
        case $state in
            ACTIVE) return ;;
            NONE)
                queue create --node-id="$NAME" --accelerator-type="$TYPE" \
                    --runtime-version="$RUNTIME" ${SPOT:+--spot} ;;
            SUSPENDED) queue delete --force ;; # a preempted spot slice never comes back
            FAILED)
                queue describe >&2
                exit 1 ;;
        esac
        sleep 30
    done
}

options=
(($# == 0)) || printf -v options ' %q' "$@"
setenv=
for word in $ENVIRONMENT; do printf -v setenv '%s --setenv=%q' "$setenv" "$word"; done

# A run that a broken connection left behind must end before the command restarts: it saves first.
prepare=$(cat <<END
set -e
sudo systemctl stop rft-jax 2>/dev/null || true
if ! mountpoint -q /mnt/share; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common
    sudo mkdir -p /mnt/share
    sudo mount -t nfs -o lookupcache=positive $(printf %q "$SHARE") /mnt/share
fi
[ -d rft_jax ] || git clone --quiet $(printf %q "$REPO") rft_jax
cd rft_jax
git fetch --quiet origin $(printf %q "$REVISION")
git checkout --quiet --detach FETCH_HEAD
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.lock -e '.[tpu,gcs]'
END
)

# A service runs on without a connection, exists once, and gets SIGTERM when its host shuts down.
# KillMode=mixed: SIGTERM goes to the run only, not to its verifier workers.
# LimitMEMLOCK: libtpu locks memory, and a service may lock little by default.
run="cd rft_jax && sudo systemd-run --unit=rft-jax --wait --collect --quiet --uid=\$USER \
--working-directory=\$PWD --property=KillMode=mixed --property=TimeoutStopSec=300 \
--property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
--setenv=JAX_COMPILATION_CACHE_DIR=/mnt/share/xla$setenv \
\$PWD/.venv/bin/rft-jax run $(printf %q "$EXPERIMENT") --workdir /mnt/share/$NAME$options"

for ((start = 0; start <= RESTARTS; start++)); do
    wait_until_ready
    status=0
    { on_all "$prepare" && on_all "$run"; } || status=$?
    case $status in
        0)
            queue delete --force
            exit 0 ;;
        2)
            echo "$NAME: an error to fix (see the journal); the slice is kept, and costs." >&2
            exit 2 ;;
    esac
    echo "$NAME: exit status $status; the same command resumes from the last checkpoint." >&2
    sleep 30
done
echo "$NAME: given up after $RESTARTS restarts; the slice is kept, and costs." >&2
exit 1

#!/bin/bash
# Measure flashlite on a GPU: bash tools/gpu_bench.sh OUT
#
# For a bare Linux machine with CUDA, PyTorch, transformers, accelerate and matplotlib, and nothing to download. It takes
# at most 9 minutes. Each step has a time limit of its own, and what is complete by then is in the folder OUT: a log of
# each step, and the JSON and the figure of each benchmark.
#
# FLASHLITE_GPU_DEVICE   cuda unless given; `staged` goes through every step with the CPU taken for a device
# FLASHLITE_GPU_MODELS   "opt-1.3b opt-6.7b" unless given: planted models of these sizes, and opt-mini by that name. Where
#                        9 minutes are too short for both, a second run takes opt-6.7b alone.
# FLASHLITE_GPU_STAGES   0-6 unless given
# FLASHLITE_GPU_SCRATCH  a folder on the drive to measure; OUT/scratch unless given. Stores in it are removed at the end.
set -u
[ $# -eq 1 ] || { echo "usage: bash tools/gpu_bench.sh OUT" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 1
case $1 in /*) OUT=$1 ;; *) OUT=$OLDPWD/$1 ;; esac
DEVICE=${FLASHLITE_GPU_DEVICE:-cuda}
MODELS=${FLASHLITE_GPU_MODELS-opt-1.3b opt-6.7b}
SCRATCH=${FLASHLITE_GPU_SCRATCH:-$OUT/scratch}
STAGES=${FLASHLITE_GPU_STAGES:-0-6}
PYTHON=${PYTHON:-python3}
END=$((SECONDS + 530))  # seconds; the rest of 9 minutes is for the last process to end
mkdir -p "$OUT" "$SCRATCH" || exit 1
export FLASHLITE_HOME=$SCRATCH/home PYTHONPATH=$PWD HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
trap 'rm -rf "$SCRATCH"' EXIT

step() {  # step NAME SECONDS COMMAND...: run it, into OUT/NAME.log, within its own limit and the whole script's
    local name=$1 limit=$2 left=$((END - SECONDS)) began=$SECONDS code
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 10 ]; then
        echo "skipped  $name: no time is left" | tee -a "$OUT/steps.txt"
        return 1
    fi
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$OUT/$name.log" 2>&1  # INT: bench then shows what is complete
    code=$?
    echo "$([ $code -eq 0 ] && echo done || echo "FAILED ($code)")  $name, $((SECONDS - began)) s" | tee -a "$OUT/steps.txt"
    return $code
}

room() {  # room GIB: whether the drive has so much
    [ "$(df -Pk "$SCRATCH" | awk 'NR == 2 { print int($4 / 1048576) }')" -ge "$1" ]
}

measure() {  # measure NAME OPTION...: the ladder of $store
    flashlite "$1" $limit bench "$store" --device "$DEVICE" --stages "$STAGES" "${@:2}" \
        --rounds 1 --tokens 32 --prompt-tokens 128 --slow-tokens 8 --check-tokens 8 --dram-budget 52% \
        --json "$OUT/bench-$model-cuda.json" --plot "$OUT/bench-$model-cuda.png"
}

flashlite() { step "$1" "$2" "$PYTHON" -m flashlite "${@:3}"; }

: > "$OUT/steps.txt"
step machine 60 "$PYTHON" - << 'PY'
import platform, subprocess, torch, transformers
print(platform.platform(), "python", platform.python_version())
print("torch", torch.__version__, "transformers", transformers.__version__)
print("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
subprocess.run("nvidia-smi; free -g; df -h .", shell=True)
PY
step exact 120 "$PYTHON" tools/gpu_exact.py "$DEVICE" "$OUT/exact.json" "$STAGES"
[ $? -eq 1 ] && exit 1  # a wrong stage has no speed
PEERS=--peers
"$PYTHON" -c "import accelerate" 2> "$OUT/accelerate.log" || PEERS=
for model in $MODELS; do
    case $model in
        opt-mini) store=opt-mini; limit=200 ;;
        opt-1.3b) store=$SCRATCH/$model; limit=150 ;;
        *) store=$SCRATCH/$model; limit=400 ;;
    esac
    if [ "$store" != opt-mini ]; then
        case $model in opt-1.3b) need=10 ;; *) need=45 ;; esac  # both layouts, the peers' checkpoint, and its offload
        room $need || { echo "skipped  $model: the drive has no $need GiB" | tee -a "$OUT/steps.txt"; continue; }
        flashlite "synth-$model" 200 synth "$model" "$store" --dtype bf16 || continue
    fi
    measure "bench-$model" --memory-cap $PEERS
    case $? in 0|124|137) ;; *) measure "bench-$model-plain" ;; esac  # a stage or a peer that fails leaves no JSON
    [ "$store" = opt-mini ] || rm -rf "$store"
done
cat "$OUT/steps.txt"

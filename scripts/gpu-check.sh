#!/usr/bin/env bash
# Everything that must hold on a GPU, from a checkout with a bundle (scripts/bundle.sh --binaries-only) and no Rust: both suites with
# the GPU required, compute-sanitizer's four tools over the functional suite, and what bench measures, PyTorch beside it in the same run.
#
# Usage: scripts/gpu-check.sh OUT [suites|sanitizer|racecheck|texts|speed|repeat]...     (all of them)
# Leaves its figures as JSON under OUT; scripts/figures.py makes docs/ of them. Exits non-zero if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gpu-check.sh OUT [PART]...}
shift
parts=${*:-suites sanitizer racecheck texts speed repeat}
mkdir -p "$out"
export TOUCHSTONE_REQUIRE_CUDA=1
failed=0

# Runs a named command, keeps its whole output, shows the end of it.
check() {
    local name=$1 started=$SECONDS
    shift
    if "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name ($((SECONDS - started)) s)"
    else
        echo "FAILED  $name (exit $?)"
        tail -n 25 "$out/$name.log"
        failed=1
    fi
}

repeat() {
    local count=$1
    shift
    for ((run = 1; run <= count; run++)); do
        "$@" || { echo "run $run of $count failed"; return 1; }
    done
}

# What takes minutes under the sanitizer, which slows a kernel by one to three orders of magnitude: whole texts, and the longest cases of models.
long=(--skip generate/ --skip gpt/trained --skip gpt/drawn_256 --skip gpt/drawn_1600)

# Under racecheck a text of 256 tokens takes minutes step by step, and 2 to 6 MB of host memory for each launch checked; one made in a single launch
# does not end. So each such trial by steps runs once for each of these ranges of launches (the number of the first; the last range is open).
range_starts=(0 4000 8000 8500 9000 21000 21500 22000)

texts() {
    local logs code
    logs=$(mktemp -d)
    bundle/functional --list | sed -nE 's/^(generate.* cuda.* (steps|plain)): test$/\1/p' | while read -r trial; do
        for i in "${!range_starts[@]}"; do
            first=${range_starts[i]} next=${range_starts[i + 1]:-}
            echo "$first $((next ? next - first : 0)) --exact '$trial'"
        done
    done | xargs -P 5 -L 1 sh -c '
        log=$(mktemp -p "$0") skip=$1 count=$2
        shift 2
        compute-sanitizer --tool racecheck --launch-skip "$skip" --launch-count "$count" --error-exitcode 9 \
            bundle/functional "$@" >"$log" 2>&1 && exit
        echo "run 1 of 1 failed" >>"$log"
        exit 1' "$logs"
    code=$?
    cat "$logs"/*
    rm -r "$logs"
    return $code
}

shape() { echo --config "benches/shapes/$1/config.json"; }
models=(--model models/shakespeare-char-small --model models/shakespeare-char)

# speed NAME OPTION...: what bench measures, into speed-NAME.json.
speed() {
    local name=$1
    shift
    bundle/touchstone bench --device cuda --new-tokens 200 --json "$@" >"$out/speed-$name.json"
}

for part in $parts; do
    case $part in
    suites)
        check doctor bundle/touchstone doctor --require-cuda
        check functional env TOUCHSTONE_REPORT="$out/functional.json" bundle/functional
        check memory env TOUCHSTONE_REPORT="$out/memory.json" bundle/memory
        ;;
    sanitizer)
        # Only the GPU's own trials: the sanitizer sees no host code.
        for tool in "memcheck --leak-check full" initcheck synccheck; do
            check "sanitizer-${tool%% *}" compute-sanitizer --tool $tool --error-exitcode 9 bundle/functional cuda "${long[@]}"
        done
        ;;
    racecheck)
        # Without models, and without what picks by a decoder over the whole GPU: what decodes in one launch does not end under it, and where one lane arrives
        # at an mbarrier for its warp, racecheck takes the other lanes' accesses for unordered (so it does with a kernel of two warps and one barrier; where
        # every lane arrives, it does not).
        check sanitizer-racecheck compute-sanitizer --tool racecheck --error-exitcode 9 bundle/functional cuda --skip generate/ --skip gpt/ \
            --skip ' grid' --skip ' shards'
        ;;
    texts)
        check racecheck-texts texts
        ;;
    speed)
        check speed-service speed service "${models[@]}" --dtype bf16,f32 --measure batch,cold-start --repeats 5 --peers
        check speed-bf16 speed bf16 "${models[@]:0:2}" $(shape char-256) --dtype bf16 --measure decode,context --repeats 10
        check speed-f32 speed f32 "${models[@]}" $(shape char-128) $(shape char-256) --dtype f32 --measure decode,context --repeats 10
        check speed-handoffs speed handoffs "${models[@]}" --dtype bf16 --measure handoffs --batches 1,64 --repeats 5
        check speed-handoffs-large speed handoffs-large $(shape char-128) $(shape char-256) $(shape gpt-85m) $(shape gpt2-124m) --dtype bf16 \
            --measure handoffs --batches 1 --repeats 5
        check speed-large speed large $(shape gpt2-xl) --dtype bf16 --measure decode,context --repeats 3
        check speed-prefill speed prefill $(shape gpt2-xl) --dtype bf16 --measure prefill --repeats 10 --peers
        # PyTorch takes minutes to prepare: it stands beside one model of each size, behind all else.
        check speed-peers speed peers "${models[@]:2}" $(shape char-128) $(shape gpt-85m) $(shape gpt2-124m) --dtype bf16 --measure decode,context \
            --repeats 5 --peers --peer-modes compiled --svg "$out/latency.svg"
        ;;
    repeat)
        check repeat-functional repeat 50 bundle/functional
        check repeat-memory repeat 5 bundle/memory
        ;;
    *)
        echo "unknown part $part"
        exit 2
        ;;
    esac
done
exit $failed

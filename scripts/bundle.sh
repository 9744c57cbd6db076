#!/usr/bin/env bash
# Collects what runs on a GPU machine without Rust into one folder: the release binaries, the test executables and, unless
# --binaries-only, the golden cases and models they need. Run them from that folder, or from a checkout.
#
# Usage: scripts/bundle.sh [--binaries-only] [DIR]      (DIR: bundle)
set -euo pipefail
cd "$(dirname "$0")/.."

with_data=true
if [[ ${1:-} == --binaries-only ]]; then
    with_data=false
    shift
fi
out=${1:-bundle}

cargo build --release --bins
rm -rf "$out"
mkdir -p "$out"
cp target/release/prompt target/release/touchstone "$out/"

# Cargo names test executables with a hash; its own messages say which they are.
cargo test --no-run --test functional --test memory --message-format=json |
    python3 -c '
import json, shutil, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"] == ["test"]:
        shutil.copy(message["executable"], sys.argv[1] + "/" + message["target"]["name"])
' "$out"
strip "$out"/*

if $with_data; then
    mkdir -p "$out/golden"
    cp -r golden/cases "$out/golden/"
    cp -r models "$out/"
fi
du -sh "$out"

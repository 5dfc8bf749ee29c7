#!/usr/bin/env bash
# The Hub tests with the oldest supported huggingface_hub, the newest 1.x and the newest of all.
# Each is installed into a folder of its own that goes before the virtual environment.
#     tests/hub_versions.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
oldest=$(sed -n 's/.*"huggingface-hub>=\([0-9.]*\)".*/\1/p' pyproject.toml)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
failed=0
for wanted in "~=$oldest.0" "<2" ""; do
    rm -rf "$place/site"
    $python -m pip install --quiet --disable-pip-version-check --target "$place/site" \
        "huggingface_hub$wanted"
    PYTHONPATH="$place/site" $python -c \
        'import huggingface_hub as h; print("huggingface_hub", h.__version__, h.__file__)'
    PYTHONPATH="$place/site" $python -m pytest tests/hub/test_download*.py "$@" || failed=1
done
exit $failed

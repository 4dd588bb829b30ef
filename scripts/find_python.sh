#!/usr/bin/env bash
# Prints the first Python on PATH that LoHan runs on.
set -euo pipefail
for candidate in python3 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    echo "$candidate"
    exit 0
  fi
done
echo "set-up: no Python 3.11, 3.12 or 3.13 on PATH; name one: make PYTHON=/path/to/python3" >&2
exit 1

#!/usr/bin/env bash
# Makes .venv what requirements.lock says. Does nothing when it is so already.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.racm3-setup
lock=.setup-lock
wanted="$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1) $PWD"
installer=""

is_set_up() {
    [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]
}

leave() {
    [ -z "$installer" ] || kill "$installer" 2>/dev/null || true
    rm -f "$lock"
}

if is_set_up; then
    exit 0
fi

# Two at once (make demo here, make test there) would install into one folder from both sides.
told=""
until (set -o noclobber && echo $$ >"$lock") 2>/dev/null; do
    holder="$(cat "$lock" 2>/dev/null || true)"
    if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then
        rm -f "$lock" # it was killed
        continue
    fi
    [ -n "$told" ] || echo "setup: waiting for another setup of this clone (process $holder)"
    told=yes
    sleep 1
done
trap leave EXIT
if is_set_up; then
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    python=""
    for name in "${PYTHON:-}" python3.11 python3.12 python3; do
        [ -n "$name" ] && command -v "$name" >/dev/null || continue
        "$name" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' || continue
        python="$name"
        break
    done
    if [ -z "$python" ]; then
        echo "setup: Python 3.11 or 3.12 is needed and neither is on PATH;" \
            "install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
        exit 1
    fi
    echo "setup: making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: $python cannot make virtual environments; install its venv package" \
            "(Debian: apt install python3.11-venv)" >&2
        exit 1
    fi
fi

rm -f "$stamp"
pip=(.venv/bin/python -m pip --disable-pip-version-check -qq install --no-deps)
echo "setup: installing $(grep -c '==' requirements.lock) packages from requirements.lock" \
    "(about 7 GB on disk: a few minutes the first time)"
began=$SECONDS
"${pip[@]}" --require-hashes -r requirements.lock &
installer=$!
while kill -0 "$installer" 2>/dev/null; do # a line a half minute: silence looks like a hang
    for _ in $(seq 30); do
        sleep 1
        kill -0 "$installer" 2>/dev/null || break
    done
    kill -0 "$installer" 2>/dev/null && echo "setup: still installing, $((SECONDS - began)) s" || true
done
wait "$installer"
installer=""
"${pip[@]}" --no-build-isolation -e .
printf '%s' "$wanted" >"$stamp"
echo "setup: done in $((SECONDS - began)) s"

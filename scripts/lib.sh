# shellcheck shell=bash
# Set-up shared by scripts/demo and scripts/test: Debian packages, the virtual environment, the build. Sourced by bash.
#
# Needs Debian 12 or later with /usr/bin/python3 3.11 or later, and root or sudo while packages are missing.
# What stands already is left alone: .venv/set-up-KIND holds a fingerprint of everything the set-up depends on.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
# The venv is made from Debian's own Python whatever comes first in PATH: Debian's python3-* modules belong to it.
PYTHON=/usr/bin/python3
# A stray setting of the caller's must not lead Python or pip astray.
unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1

PACKAGES_BUILD=(gcc libc6-dev libibverbs-dev libssl-dev liburing-dev python3-dev python3-venv)
PACKAGES_TEST=(bash-completion chromium chromium-driver clang curl fio fish fonts-dejavu-core fuse3 ibverbs-providers jq libclang-rt-14-dev libnbd-bin lintian man-db mandoc memcached nbd-client nbdkit openssl prometheus python3-libnbd python3-pyverbs qemu-utils shellcheck systemd zsh)

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# missing_packages NAME... : prints those that are not installed.
missing_packages() {
    command -v dpkg-query >/dev/null || { printf '%s\n' "$@"; return; }
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done
}

# as_root COMMAND... : runs it as root, with sudo where needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install NAME... : without new package lists first, for they may be there already; quiet unless it fails.
apt_install() {
    local log try
    log=$(mktemp)
    for try in 1 2; do
        if as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
            -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1; then
            rm -f "$log"
            return
        fi
        [ "$try" = 1 ] || break
        as_root apt-get update -q -o DPkg::Lock::Timeout=120 >"$log" 2>&1 || break
    done
    cat "$log" >&2
    rm -f "$log"
    die "installing $* failed; see above"
}

# need_packages NAME... : installs those that are missing.
need_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "this is no Debian: install by hand what Debian calls ${missing[*]}"
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "missing Debian packages, and neither root nor sudo to install them: run as root: apt-get install ${missing[*]}"
    fi
    say "Installing Debian packages: ${missing[*]}"
    apt_install "${missing[@]}"
}

# fingerprint KIND : one line that changes when the environment has to be made anew.
fingerprint() {
    local inputs=(setup.py pyproject.toml scripts/lib.sh infiniswap/__init__.py infiniswap/engine/build.py)
    [ "$1" = build ] || inputs+=(requirements-test.txt)
    (
        cd "$ROOT" || exit
        echo "$1 $ROOT"
        "$PYTHON" --version
        sha256sum "${inputs[@]}"
        find infiniswap/engine/include infiniswap/engine/src -type f -name '*.[ch]' -print0 | sort -z | xargs -0 sha256sum
    ) | sha256sum
}

# make_venv : an environment from $PYTHON that sees Debian's modules; one of another kind or place is made anew.
make_venv() {
    if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c '' 2>/dev/null &&
        grep -qsxF "command = $PYTHON -m venv --system-site-packages $VENV" "$VENV/pyvenv.cfg"; then
        return
    fi
    say "Creating $VENV"
    rm -rf "$VENV"
    "$PYTHON" -m venv --system-site-packages "$VENV" || die "creating $VENV failed"
}

# pip_install ARGUMENT... : quiet unless it fails.
pip_install() {
    local log
    log=$(mktemp)
    if ! "$VENV/bin/python" -m pip install --no-input "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "pip install $* failed; see above"
    fi
    rm -f "$log"
}

# set_up KIND : build (what the programs need) or test (that and the test tools).
set_up() {
    local kind=$1 stamp=$VENV/set-up-$1 begun=$SECONDS
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "$PYTHON must be Python 3.11 or later (on Debian 12: apt-get install python3)"
    need_packages "${PACKAGES_BUILD[@]}"
    [ "$kind" = build ] || need_packages "${PACKAGES_TEST[@]}"
    # Two runs at once take turns; the lock is let go when this shell closes descriptor 9.
    exec 9<"$ROOT/scripts/lib.sh"
    flock -w 900 9 || die "another set-up has been running for 15 minutes (it holds a lock on $ROOT/scripts/lib.sh)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint "$kind")" ]; then
        make_venv
        say "Building and installing into $VENV"
        # Tests see the same libraries everywhere: of Debian's modules, which are older, they take those that pip has not.
        if [ "$kind" = build ]; then
            pip_install -e "$ROOT"
        else
            pip_install --upgrade --upgrade-strategy eager -e "$ROOT" -r "$ROOT/requirements-test.txt"
        fi
        fingerprint "$kind" >"$stamp"
        [ "$kind" = build ] || fingerprint build >"$VENV/set-up-build"
        say "Set up in $((SECONDS - begun)) s"
    fi
    exec 9>&-
}

#!/usr/bin/env bash
# Installs from the system's packages what the native build needs or can use, where that is missing and allowed:
# a C++ compiler, Python's headers and venv, and liburing's headers. Without root (or sudo without a password) it says
# what is missing and goes on: the build then fails for want of a compiler or Python.h, and works without io_uring for
# want of liburing. With `browser`, one that shows pages without a window is wanted too: tests look at pages with it, and
# are skipped where there is none.
#
# Usage: system_packages.sh PYTHON [browser]
set -euo pipefail
python="$1"
wants="${2:-}"

missing=()
command -v c++ >/dev/null || missing+=(compiler)
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  missing+=(python-headers)
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python-venv)
c++ -E -x c++ -include liburing.h /dev/null >/dev/null 2>&1 || missing+=(liburing)
if [ "$wants" = browser ]; then
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing+=(browser)
fi
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "set-up: missing and not installable without root: ${missing[*]}" >&2
  exit 0
fi

version="$("$python" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")')"
packages=()
for what in "${missing[@]}"; do
  case "$what" in
    compiler) apt=(g++) dnf=(gcc-c++) pacman=(gcc) ;;
    python-headers) apt=("python$version-dev") dnf=("python$version-devel") pacman=(python) ;;
    python-venv) apt=("python$version-venv") dnf=("python$version") pacman=(python) ;;
    browser) apt=(chromium) dnf=(chromium) pacman=(chromium) ;;
    liburing) apt=(liburing-dev) dnf=(liburing-devel) pacman=(liburing) ;;
  esac
  if command -v apt-get >/dev/null; then
    packages+=("${apt[@]}")
  elif command -v dnf >/dev/null; then
    packages+=("${dnf[@]}")
  else
    packages+=("${pacman[@]}")
  fi
done

install() {
  if command -v apt-get >/dev/null; then
    # The lists of a fresh machine are empty or old.
    "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
  elif command -v dnf >/dev/null; then
    "${as_root[@]}" dnf install -y -q "$1"
  elif command -v pacman >/dev/null; then
    "${as_root[@]}" pacman -S --noconfirm --needed "$1" >/dev/null
  else
    return 1
  fi
}

# One at a time, so that a package that this system does not have keeps no other away.
for package in "${packages[@]}"; do
  install "$package" || echo "set-up: could not install $package; going on without it" >&2
done

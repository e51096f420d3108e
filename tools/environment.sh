# shellcheck shell=bash
# Sourced by tools/demo and tools/test. `require_environment` makes .venv with the pinned packages, or finds it made and
# costs nothing; afterwards $python is its interpreter and the working folder is the project's.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
_constraints=$root/tools/constraints.txt
_stamp=$root/.venv/setup.sha256
_log=
_child=

require_environment() {
  local wanted
  cd "$root" || exit 1
  wanted=$(_fingerprint)
  if _is_made "$wanted"; then return; fi
  if [[ $(uname -s) != Linux ]]; then _give_up "inspectd needs Linux; this is $(uname -s)"; fi
  _log=$(mktemp "${TMPDIR:-/tmp}/inspectd-setup.XXXXXX.log") || _give_up "free some space in ${TMPDIR:-/tmp}"
  trap '_interrupted' INT TERM
  exec 9<"$_constraints"
  _wait_for_the_other_one
  _is_made "$wanted" || _make "$wanted"
  exec 9<&-
  trap - INT TERM
  rm -f "$_log"
}

# What the environment depends on: the pins, the project's own list, and the folder (an environment cannot be moved).
_fingerprint() {
  { cat "$_constraints" "$root/pyproject.toml" && echo "$root"; } | sha256sum
}

_is_made() {
  [[ -x $python && -r $_stamp && $(<"$_stamp") == "$1" ]]
}

# Two set-ups at once would write over each other; the lock ends with the script.
_wait_for_the_other_one() {
  command -v flock >/dev/null || return 0
  flock --nonblock 9 || { echo "Another set-up is at work in $root/.venv: waiting for it" && flock 9; }
}

_make() {
  echo "Setting up $root/.venv (once; some minutes, most of them for PyTorch)"
  _step "1/3 virtual environment" _make_venv
  _step "2/3 PyTorch $(_pinned torch)" _pip_install "torch==$(_pinned torch)" "setuptools==$(_pinned setuptools)"
  _step "3/3 inspectd and the other packages" _pip_install --no-build-isolation -e ".[dev]"
  echo "$1" >"$_stamp"
}

_pinned() {
  sed -n "s/^$1==//p" "$_constraints"
}

_make_venv() {
  local base
  if _is_fit "$python" && "$python" -m pip --version; then return; fi
  base=$(_base_python) || return
  if "$base" -c 'import ensurepip'; then
    "$base" -m venv --clear .venv
  else # Debian without python3-venv: its pip can fill an environment that has none
    "$base" -m venv --clear --without-pip .venv && "$base" -m pip --python "$python" install pip
  fi
}

_is_fit() {
  "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'
}

# 3.11 first: it is the one that the pinned versions are tested on.
_base_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.14 python3; do
    if _is_fit "$name"; then command -v "$name" && return; fi
  done
  echo "no fit Python among python3.11, python3.12, python3.13, python3.14, python3" >&2
  return 1
}

# Takes the place of its subshell (`_step` gives it one), so that an interrupt ends pip itself.
_pip_install() {
  exec "$python" -m pip install --disable-pip-version-check --progress-bar off -c "$_constraints" "$@"
}

# _step TEXT COMMAND…: one line of progress; where the command fails, the end of its output and what to do.
_step() {
  local text=$1 started=$SECONDS
  shift
  : >"$_log"
  [[ -t 1 ]] || echo "  $text"
  "$@" >>"$_log" 2>&1 9<&- &
  _child=$!
  if [[ -t 1 ]]; then _tick "$text" "$started"; fi
  if ! wait "$_child"; then
    _line "$text: failed. The end of its output:"
    tail -n 12 "$_log" | sed 's/^/    /'
    _give_up "$(_advice)"
  fi
  _line "$text: done in $((SECONDS - started)) s"
}

_line() {
  if [[ -t 1 ]]; then printf '\r\e[K'; fi
  echo "  $1"
}

# On a terminal: the seconds, and what pip does at the moment.
_tick() {
  local now width
  while kill -0 "$_child" 2>/dev/null; do
    now=$(tail -n 1 "$_log" | tr -d '\r' | sed 's/^ *//')
    width=$(tput cols 2>/dev/null || echo 80)
    printf '\r\e[K%.*s' $((width - 1)) "  $1: $((SECONDS - $2)) s  $now"
    sleep 1
  done
}

_advice() {
  case $(<"$_log") in
    *"No space left"*) echo "free some GB on the disk of $root (or point TMPDIR to a larger one) and run this again" ;;
    *"no fit Python"*) echo "install Python 3.11 or newer (Debian: apt-get install python3 python3-venv) and run this again" ;;
    *"No module named pip"*) echo "install pip or venv for this Python (Debian: apt-get install python3-venv) and run this again" ;;
    *NewConnectionError* | *"name resolution"* | *"timed out"* | *ProxyError* | *SSLError* | *ResolutionImpossible* | *"No matching distribution"*)
      echo "pip did not get a package: check the network and pip's settings (pip config list, HTTPS_PROXY), or use Python 3.11 if this is a newer one, and run this again" ;;
    *) echo "read $_log; removing $root/.venv and running this again starts from nothing" ;;
  esac
}

_give_up() {
  echo "What to do: $1" >&2
  exit 1
}

_interrupted() {
  if [[ -n $_child ]]; then kill "$_child" 2>/dev/null; fi
  printf '\nInterrupted; run this again to go on.\n' >&2
  exit 130
}

"""Set up the environment that `make` runs everything in: python tools/set_up.py FOLDER [EXTRA]

EXTRA     what to add to an environment that is there, by its name in pyproject.toml: site

This file is read by any Python 3, so that one that is too old can be told so. A set-up that was interrupted goes on
where it was: what is downloaded and installed already is kept.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 14)
ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "course,dev"
# what pip may be told by its environment: where packages come from. All else, such as PIP_USER or PIP_TARGET, would
# have it install elsewhere or not at all.
KEPT = {
    "INDEX_URL", "EXTRA_INDEX_URL", "NO_INDEX", "FIND_LINKS", "TRUSTED_HOST", "PROXY", "CERT", "CLIENT_CERT",
    "CACHE_DIR", "NO_CACHE_DIR", "CONFIG_FILE", "DEFAULT_TIMEOUT", "TIMEOUT", "RETRIES", "KEYRING_PROVIDER",
}  # fmt: skip
DROPPED = {"PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "__PYVENV_LAUNCHER__"}
LARGE = 5e6  # bytes of a download that is worth a line
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def main():
    """Do what is missing, and say what is being done."""
    folder, extra = Path(sys.argv[1]), "".join(sys.argv[2:])
    check_python()
    if extra:
        say("adding to {} what the {} needs, about 20 MB".format(folder, extra))
        install(folder, extra, "installing")
        (folder / extra).touch()
        return
    if is_sound(folder):
        say("step 1 of 3: the environment in {} is there".format(folder))
    else:
        say("step 1 of 3: an environment in {}, with {}".format(folder, version(sys.version_info)))
        make_environment(folder)
    size = "3 GB, because torch for Linux brings CUDA along" if sys.platform == "linux" else "0.3 GB"
    say("step 2 of 3: downloading; if nothing is at hand yet, about {}".format(size))
    install(folder, EXTRAS, "step 3 of 3: installing, which takes a minute or two")
    (folder / "ready").touch()


def say(line):
    """A line for whoever waits."""
    print("make: " + line, flush=True)


def fail(line):
    """End with one line that says what is wrong and what to do."""
    sys.exit("make: " + line)


def version(info):
    """A Python's version as people say it."""
    return "Python {}.{}".format(*info[:2])


def check_python():
    """End unless this Python is new enough and can make environments."""
    if sys.version_info[:2] < OLDEST:
        names = ("python3.{}".format(minor) for minor in range(NEWEST[1], OLDEST[1] - 1, -1))
        newer = next(filter(shutil.which, names), None)
        advice = "write" if newer else "install one, and write"
        fail(
            "flashlite needs {} or newer, this is {}.{}: {} make PYTHON={} ...".format(
                version(OLDEST), *sys.version_info[:2], advice, newer or "python3.12"
            )
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail(
            "{} can't make environments: install its venv (on Debian and Ubuntu `sudo apt install python3-venv`), or "
            "name another Python: make PYTHON=python3.12 ...".format(sys.executable)
        )


def is_sound(folder):
    """Whether there is an environment of this version of Python that has pip."""
    ask = "import pip, sys; print(sys.version_info[:2] == {})".format(tuple(sys.version_info[:2]))
    try:
        done = subprocess.run(
            [str(folder / "bin/python"), "-c", ask], env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, universal_newlines=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return done.stdout.strip() == "True"


def make_environment(folder):
    """Make an environment, in place of one that is broken, incomplete or of another Python."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True, check=False,
    )  # fmt: skip
    if made.returncode:
        sys.stderr.write(made.stdout)
        fail("{} can't make an environment in {}, see above".format(sys.executable, folder))


def environment():
    """The variables of this process without those that lead pip or Python astray."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in DROPPED and (not name.startswith("PIP_") or name[4:] in KEPT)
    }
    return dict(
        kept,
        PIP_USER="0",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_PROGRESS_BAR="off",
        PIP_NO_INPUT="1",
        PYTHONUNBUFFERED="1",
    )


def install(folder, extras, last):
    """Install flashlite for work on it, with what these extras need, and tell how far that is. last: the last step."""
    command = [
        str(folder / "bin/python"), "-m", "pip", "install", "-c", str(ROOT / "constraints.txt"),
        "-e", "{}[{}]".format(ROOT, extras),
    ]  # fmt: skip
    pip = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    lines, before = [], 0.0
    for line in pip.stdout:
        lines.append(line)
        download = re.match(r"\s*Downloading (\w+)\S* \(([\d.]+) (bytes|kB|MB|GB)\)", line)
        if download:
            size = float(download.group(2)) * UNITS[download.group(3)]
            if size > LARGE:
                say("  {}, {:.0f} MB, after {:.0f} MB".format(download.group(1), size / 1e6, before / 1e6))
            before += size
        elif line.startswith("Installing collected packages"):
            say("{}; packages: {}".format(last, line.count(",") + 1))
    if pip.wait():
        sys.stderr.writelines(lines[-15:])
        fail("pip could not install everything, see above; what it has is kept, and make goes on from there")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; what is there is kept, and make goes on from there")

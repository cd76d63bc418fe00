"""Processes that a server forks are as fresh ones are."""

import json
import os
import signal
import sys

import pytest
from support import processes

ENDS = {
    "print('end')": (0, "end\n", ""),
    "import sys; sys.exit(3)": (3, "", ""),
    "import sys; sys.exit('no')": (1, "", "no\n"),
    "import atexit; atexit.register(print, 'exit'); 1 / 0": (
        1,
        "exit\n",
        "ZeroDivisionError: division by zero\n",
    ),
    "import os; os._exit(9)": (9, "", ""),
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": (-signal.SIGKILL, "", ""),
    "import sys; print([name for name in sys.modules if name.startswith('stzoo')])": (0, "[]\n", ""),
}


def python(code, *arguments, **options):
    return processes.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_a_fresh_one(code):
    expected, out, err = ENDS[code]
    done = python(code)
    assert (done.returncode, done.stdout) == (expected, out)
    assert done.stderr.endswith(err)
    assert bool(done.stderr) == bool(err)


@pytest.mark.parametrize(
    ("number", "handler", "expected"),
    [(signal.SIGTERM, "", -signal.SIGTERM), (signal.SIGINT, "except KeyboardInterrupt: sys.exit(130)", 130)],
)
def test_signals_reach_it(number, handler, expected):
    code = f"import sys, time\ntry: print('up', flush=True); time.sleep(60)\n{handler or 'finally: pass'}"
    with processes.Popen([sys.executable, "-c", code], stdout=processes.subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == expected


def test_folder_environment_and_arguments_are_its_own(tmp_path):
    code = "import json, os, sys; print(json.dumps([os.getcwd(), os.environ.get('X'), __name__, sys.argv]))"
    done = python(code, "a", tmp_path / "b", cwd=tmp_path, env=os.environ | {"X": "1"})
    assert json.loads(done.stdout) == [str(tmp_path), "1", "__main__", ["-c", "a", str(tmp_path / "b")]]


@pytest.mark.parametrize("safe", [[], ["-P"]], ids=str)
def test_the_folder_of_the_code_is_searched_unless_the_path_is_safe(tmp_path, safe):
    code, script = "import sys; print(*map(repr, sys.path[:1]))", tmp_path / "script.py"
    script.write_text(code)
    for words, folder in ((["-c", code], ""), ([script], str(tmp_path))):
        done = processes.run([sys.executable, *safe, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (done.stdout == f"{folder!r}\n") == (not safe), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="these are fresh processes")
def test_what_libraries_read_as_they_start_cannot_change(tmp_path):
    with pytest.raises(AssertionError, match="fresh"):
        python("", env=os.environ | {"TORCH_HOME": str(tmp_path)})


def test_the_libraries_of_the_hub_read_its_own_variables(tmp_path):
    code = "import sys; print('huggingface_hub' in sys.modules); from huggingface_hub import constants; "
    code += "print(constants.ENDPOINT, constants.HF_HOME)"
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = python(code, env=os.environ | own)
    assert done.stdout.split() == ["False", *own.values()], done.stderr


def test_one_and_the_next_hash_strings_differently():
    assert python("print(hash('wing'))").stdout != python("print(hash('wing'))").stdout


def test_a_rank_that_fails_ends_the_others():
    code = "import os, sys, time; int(os.environ['RANK']) and sys.exit(5); time.sleep(600)"
    assert processes.run_ranks(2, [sys.executable, "-c", code], timeout=60).returncode == 5

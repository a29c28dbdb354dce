"""The scripts of the workers by themselves: buckets, stopping, input."""

import fcntl
import signal
import subprocess
import threading

import pytest

from lm.launch import remote, tpu


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A worker's home folder, after a setup."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "goldenpath-job").mkdir()
  return tmp_path


@pytest.fixture
def locked(home):
  """The same while something holds the lock of the run."""
  with (home / "goldenpath-job" / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield home


@pytest.fixture
def process():
  """A process to be stopped."""
  with subprocess.Popen(["sleep", "30"]) as sleeping:
    yield sleeping
    sleeping.kill()


def _bash(script):
  return subprocess.run(
    ["bash", "-c", script], capture_output=True, text=True, timeout=60
  )


def test_buckets_are_found_anywhere_in_the_arguments():
  arguments = ["--a=gs://one/x", '--b=(("tfds:gs://two/c4", 1.0),)', "gs://one"]
  remote.check_urls(arguments)
  assert remote.buckets_of(arguments) == ["one", "two"]


@pytest.mark.parametrize("name", ["a", "my-bucket", "0.example.com", "a_b"])
def test_names_that_buckets_have(name):
  remote.check_bucket(name, name)
  remote.check_urls([f"gs://{name}/x", f'("gs://{name}",)', f"gs://{name}"])


@pytest.mark.parametrize(
  "name", ["", "BUCKET", "$BUCKET", "a b", "a\n", "-a", "a.", "..", "a,b", "a:"]
)
def test_names_that_no_bucket_has(name):
  with pytest.raises(ValueError, match="must be the name of a bucket"):
    remote.check_bucket(name, f"--bucket={name}")
  for url in (f"gs://{name}/x", f'("gs://ok/x", "gs://{name}")'):
    with pytest.raises(ValueError, match="must be the name of a bucket"):
      remote.check_urls(["--a=gs://ok/x", f"--b={url}"])


def test_stop_waits_for_a_run_that_has_just_begun(locked, process):
  pid = locked / "goldenpath-job" / "pid"
  pid.touch()  # As while it is being written.
  timer = threading.Timer(0.5, pid.write_text, [f"{process.pid}\n"])
  timer.start()
  done = _bash(remote.STOP)
  timer.join()
  assert (done.returncode, done.stderr) == (0, "")
  assert "told to save and stop" in done.stdout
  assert process.wait(timeout=20) == -signal.SIGTERM


def test_stop_says_when_it_finds_no_run_to_stop(locked, monkeypatch):
  (locked / "sleep").write_text("#!/bin/sh\n")  # Not for seconds.
  (locked / "sleep").chmod(0o755)
  monkeypatch.setenv("PATH", str(locked), prepend=":")
  done = _bash(remote.STOP)
  assert done.returncode == 1
  assert "or setup is at work; stop it again" in done.stderr


def test_a_run_forgets_the_process_of_one_that_was_killed(home, process):
  """Else `stop` could signal whatever has that number by then."""
  pid = home / "goldenpath-job" / "pid"
  pid.write_text(f"{process.pid}\n")
  done = _bash(remote.run("lm.main", []))  # There is no folder to start in.
  assert done.returncode
  assert not pid.exists()


def test_an_empty_input_is_an_error(cloud, capfd):
  (cloud.folder / "buckets" / "bucket" / "input").mkdir(parents=True)
  tpu.main(["create"])
  assert tpu.main(["setup", "--input=gs://bucket/input"]) == 1
  assert "there is nothing in gs://bucket/input" in capfd.readouterr().err
  assert not (cloud.workers[0] / "goldenpath" / "*").is_symlink()

"""The TPU launcher against a cloud that lives in a folder."""

import argparse
import shlex
import shutil
import types

import pytest

from lm.launch import gcloud, tpu

_WORKDIR = "--workdir=gs://bucket/runs/a"
_WHERE = ["--project=proj", "--zone=us-central2-b", "--quiet"]
_QUEUED = ["compute", "tpus", "queued-resources"]
_RUN = ["run", "--", "--config=c.py", _WORKDIR]


def test_create_asks_once(cloud, capsys):
  assert tpu.main(["create", "--spot", "--valid_for=6h"]) == 0
  assert tpu.main(["create", "--spot"]) == 0
  assert (
    "pod exists already and is ACTIVE; nothing to do" in capsys.readouterr().out
  )
  assert cloud.verbs() == ["describe", "create", "describe"]
  assert cloud.calls[0] == [
    *_QUEUED, "describe", "pod", "--format=value(state.state)", *_WHERE,
  ]  # fmt: skip
  assert cloud.calls[1] == [
    *_QUEUED, "create", "pod", "--node-id=pod", "--accelerator-type=v4-32",
    "--runtime-version=tpu-ubuntu2204-base", "--spot",
    "--valid-until-duration=6h", "--async", *_WHERE,
  ]  # fmt: skip


def test_create_passes_further_flags_and_an_explicit_runtime(cloud):
  argv = ["create", "--type=v9-8", "--runtime=new", "--", "--network=n"]
  assert tpu.main(argv) == 0
  assert {
    "--accelerator-type=v9-8",
    "--runtime-version=new",
    "--network=n",
  } < set(cloud.calls[1])


@pytest.mark.parametrize(
  ("accelerator", "runtime"),
  [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-32", "v2-alpha-tpuv5")],
)
def test_the_runtime_follows_the_type(cloud, accelerator, runtime):
  assert tpu.main(["create", f"--type={accelerator}"]) == 0
  assert f"--runtime-version={runtime}" in cloud.calls[1]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_lost_slice_is_replaced_only_on_request(cloud, capsys, state):
  cloud.write("state", state)
  for argv in (["create"], _RUN, ["setup"]):
    assert tpu.main(argv) == 1
    error = capsys.readouterr().err
    assert state in error
    assert "create --replace" in error
  assert set(cloud.verbs()) == {"describe"}
  assert tpu.main(["create", "--replace"]) == 0
  assert cloud.verbs()[-2:] == ["delete", "create"]
  delete = [*_QUEUED, "delete", "pod", "--force", *_WHERE]
  assert cloud.calls[-2] == delete


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING"])
def test_a_slice_to_come_is_no_failure_but_75(cloud, capsys, state):
  cloud.write("next_state", state)
  assert tpu.main(["create"]) == 0
  assert tpu.main(["create"]) == 0
  assert cloud.verbs().count("create") == 1
  for argv in (["setup"], _RUN):
    assert tpu.main(argv) == 75
    assert f"{state}; the same command works once" in capsys.readouterr().out
  assert "ssh" not in cloud.verbs()


def test_delete_twice(cloud, capsys):
  tpu.main(["create"])
  assert tpu.main(["delete"]) == 0
  assert tpu.main(["delete"]) == 0
  assert "does not exist; nothing to do" in capsys.readouterr().out
  assert cloud.verbs().count("delete") == 1
  assert tpu.main(_RUN) == 1
  assert "create it first" in capsys.readouterr().err


def test_setup_installs_the_commit_and_copies_the_input(cloud, capfd):
  source = cloud.folder / "buckets" / "bucket" / "input" / "data"
  source.mkdir(parents=True)
  (source / "rows").write_text("0 1 2")
  (tpu._ROOT / "setup.py").write_text("not committed\n")
  tpu.main(["create"])
  argv = ["setup", "--input=gs://bucket/input", "--bucket=bucket"]
  for _ in range(2):
    assert tpu.main(argv) == 0
    assert "only committed changes are sent" in capfd.readouterr().out
  for i, worker in enumerate(cloud.workers):
    assert (worker / "goldenpath" / "setup.py").read_text() == "committed\n"
    assert (worker / "goldenpath" / "data" / "rows").read_text() == "0 1 2"
    installs = (worker / "installs").read_text()
    assert installs.count("uv venv") == 1
    assert installs.count(f"--editable {worker}/goldenpath[lm,tpu]") == 2
    mounts = cloud.wait_for(i, "mounts").splitlines()
    assert len(mounts) == 1
    assert "--metadata-cache-ttl-secs=0" in mounts[0]
    assert mounts[0].endswith(f" bucket {worker}/gcs/bucket")
  capfd.readouterr()
  tpu.main(["status"])  # The mounts do not hold the lock.
  assert tpu._JOB.findall(capfd.readouterr().out) == ["new", "new"]


def test_run_once_stop_and_resume(cloud, capfd):
  cloud.make_ready()
  assert tpu.main(_RUN) == 0
  lines = cloud.wait_for(1, "arguments", "auto").splitlines()
  home = cloud.workers[1]
  assert lines == [
    f"{home}/goldenpath", "tpu,cpu", "-u", "-m", "lm.main", "--config=c.py",
    f"--workdir={home}/gcs/bucket/runs/a", "--distributed=auto",
  ]  # fmt: skip
  assert "bucket" in cloud.wait_for(1, "mounts")  # Though setup named none.
  capfd.readouterr()
  assert tpu.main(_RUN) == 0
  assert capfd.readouterr().out.count("already running") == 2
  assert [cloud.starts(0), cloud.starts(1)] == [1, 1]

  assert tpu.main(["run", "--", "--workdir=gs://bucket/runs/b"]) == 1
  assert "another run is going on: lm.main" in capfd.readouterr().err
  assert tpu.main(["setup"]) == 1
  assert "stop it before its code" in capfd.readouterr().err

  assert tpu.main(["stop"]) == 0
  for i in range(2):
    assert cloud.wait_for(i, "goldenpath-job/exit_code", "\n") == "75\n"
  cloud.wait_for(1, "goldenpath-job/log.txt", "saved\nexit code 75")
  assert tpu.main(["stop"]) == 0
  assert capfd.readouterr().out.count("nothing is running") == 2
  assert tpu.main(_RUN) == 0
  cloud.wait_for(0, "starts", "start\nstart\n")
  assert not (home / "goldenpath-job" / "exit_code").exists()


def test_the_exit_code_is_kept_when_a_machine_shuts_down(cloud):
  cloud.make_ready()
  tpu.main(_RUN)
  cloud.wait_for(0, "goldenpath-job/log.txt", "training")
  cloud.shut_down(0)
  assert cloud.wait_for(0, "goldenpath-job/exit_code", "\n") == "75\n"


def test_one_worker_out_of_reach_is_an_error_that_the_next_run_heals(
  cloud, capfd
):
  cloud.make_ready()
  cloud.write("unreachable", "1")
  assert tpu.main(_RUN) == 1
  error = capfd.readouterr().err
  assert "worker-1: timed out" in error
  assert "exit code 255" in error
  assert "the same command does the rest" in error
  cloud.wait_for(0, "arguments")
  assert cloud.starts(1) == 0
  (cloud.folder / "unreachable").unlink()
  assert tpu.main(_RUN) == 0
  cloud.wait_for(1, "arguments")
  assert [cloud.starts(0), cloud.starts(1)] == [1, 1]


def test_status_and_logs(cloud, capfd):
  assert tpu.main(["status"]) == 0
  assert "pod: does not exist" in capfd.readouterr().out
  tpu.main(["create"])
  jobs = []
  for step in (["status"], ["setup"], ["status"], _RUN, ["status"]):
    tpu.main(step)
    jobs += tpu._JOB.findall(capfd.readouterr().out)
  assert jobs == ["absent"] * 2 + ["new"] * 2 + ["running"] * 2
  cloud.wait_for(0, "goldenpath-job/log.txt", "training")
  assert tpu.main(["logs", "--lines=5"]) == 0
  assert capfd.readouterr().out == "training -m\n"
  cloud.kill(0)
  tpu.main(["stop"])
  cloud.wait_for(1, "goldenpath-job/exit_code", "\n")
  capfd.readouterr()
  tpu.main(["status"])
  found = sorted(tpu._JOB.findall(capfd.readouterr().out))
  assert found == ["ended 75", "killed"]


def test_without_gcloud(cloud, capsys, monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")
  assert tpu.main(["create"]) == 1
  assert "install the Google Cloud CLI" in capsys.readouterr().err


def test_what_gcloud_says_is_passed_on(cloud, capsys):
  cloud.write("broken", "PERMISSION_DENIED: no")
  assert tpu.main(["create"]) == 1
  error = capsys.readouterr().err
  assert "queued-resources describe pod" in error
  assert "PERMISSION_DENIED: no" in error


@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "NAME", "TYPE"])
def test_a_missing_name_is_named(cloud, capsys, monkeypatch, name):
  monkeypatch.delenv(f"TPU_{name}")
  assert tpu.main(["create"]) == 2
  error = capsys.readouterr().err
  assert f"Set --{name.lower()} or the environment variable TPU_{name}" in error
  assert cloud.calls == []


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["create", "--type=v99-8"], "TPU_RUNTIME"),
    (["setup", "--input=data"], "gcloud storage rsync"),
    (["run"], "--workdir=gs://"),
    (["run", "--", "--workdir=runs/a"], "lost with the slice"),
    (["run", "--program=lm.sweep", "--", _WORKDIR], "--root=gs://"),
    (["keep", "--", "--workdir=runs/a"], "lost with the slice"),
    (["keep", "--dry_run", "--", _WORKDIR], "no --dry_run"),
    (["run", "--", "--workdir", "gs://b/a"], "an equals sign"),
    (["run", "--", _WORKDIR, "--workdir", "runs/a"], "an equals sign"),
    # What an unset $BUCKET leaves, and what is meant to be replaced.
    (["run", "--", "--workdir=gs:///runs/a"], "--workdir=gs:///runs/a"),
    (["run", "--", "--workdir=gs://BUCKET/runs/a"], "'BUCKET'"),
    (["run", "--", _WORKDIR, "--x=gs:///y"], "--x=gs:///y"),
    (["keep", "--", "--workdir=gs:///runs/a"], "--workdir=gs:///runs/a"),
    *(
      ([command, flag, *rest], flag)
      for command, *rest in (["setup"], ["keep", "--", _WORKDIR])
      for flag in (
        "--bucket=",
        "--bucket=gs://my-bucket",
        "--bucket=a b",
        "--input=",
        "--input=gs:///x",
        "--input=gs://BUCKET/input",
      )  # fmt: skip
    ),
  ],
)
def test_bad_input_is_told_before_anything_is_asked(
  cloud, capsys, argv, message
):
  assert tpu.main(argv) == 2
  assert message in capsys.readouterr().err
  assert cloud.calls == []


def test_setup_needs_a_clone(cloud, capfd, tmp_path, monkeypatch):
  tpu.main(["create"])
  shutil.rmtree(tpu._ROOT / ".git")
  assert tpu.main(["setup"]) == 2
  assert "must be a git clone" in capfd.readouterr().err


def test_dry_run_prints_and_does_nothing(cloud, capsys):
  describe = [
    "gcloud",
    *_QUEUED,
    "describe",
    "pod",
    "--format=value(state.state)",
  ]
  for argv, verbs in (
    (["create", "--dry_run"], ["describe", "create"]),
    (["create", "--dry_run", "--replace"], ["describe", "delete", "create"]),
    (["setup", "--dry_run"], ["describe", "scp", "ssh"]),
    (["run", "--dry_run", *_RUN[1:]], ["describe", "ssh"]),
    (["delete", "--dry_run"], ["describe", "delete"]),
  ):
    assert tpu.main(argv) == 0
    words = shlex.split(capsys.readouterr().out)
    starts = [i for i, word in enumerate(words) if word == "gcloud"]
    assert [words[i + 4] for i in starts] == verbs
    assert words[: len(describe) + 3] == [*describe, *_WHERE]
  assert cloud.calls == []


def test_a_sweep_hands_its_runs_the_flag():
  rest = ["--sweep=s", "--root=gs://b/s"]
  assert tpu.run_arguments("lm.sweep", rest) == [
    *rest, "--", "--distributed=auto",
  ]  # fmt: skip
  own = [*rest, "--", "--config.seed=1"]
  assert tpu.run_arguments("lm.sweep", own) == [*own, "--distributed=auto"]
  chosen = [_WORKDIR, "--distributed=none"]
  assert tpu.run_arguments("lm.main", chosen) == chosen


def test_arguments_reach_the_program_unchanged(cloud):
  odd = ["", "two words", "it's", '$HOME `x` "q" \\', "--a=(('c4', 1.0),)"]
  cloud.make_ready()
  cloud.write("ends", "0")
  assert tpu.main([*_RUN, *odd]) == 0
  lines = cloud.wait_for(0, "arguments", "auto").splitlines()
  assert lines[-len(odd) - 1 : -1] == odd


def _keep(cloud, events, *flags):
  """Runs `keep`; each sleep does the next event. Returns its exit code."""
  target = gcloud.Target("proj", "us-central2-b", "pod")
  return _keep_on(gcloud.Gcloud(target), events, *flags)


def _keep_on(cloud, events, *flags):
  """The same, on whatever stands for gcloud."""
  events = iter(events)
  args = tpu._parse(["keep", *flags, "--", "--config=c.py", _WORKDIR])
  return tpu.keep(cloud, args, lambda _: next(events)())


def test_keep_goes_through_a_preemption_to_the_end(cloud, capfd):
  def preempt():
    cloud.wait_for(1, "arguments")
    cloud.stop_all()
    cloud.write("state", "SUSPENDED")

  def finish():
    for i in range(2):
      cloud.wait_for(i, "goldenpath-job/exit_code", "\n")

  cloud.write("next_state", "PROVISIONING")
  events = [
    lambda: None,  # Created; provisioning.
    lambda: cloud.write("state", "ACTIVE"),
    preempt,  # Set up and started.
    lambda: (cloud.write("ends", "0"), cloud.write("state", "ACTIVE")),
    finish,  # Set up and started again.
  ]
  assert _keep(cloud, events, "--spot") == 0
  assert cloud.verbs().count("create") == 2
  assert cloud.verbs().count("delete") == 1
  assert cloud.verbs().count("scp") == 2
  creates = [call for call in cloud.calls if call[3] == "create"]
  assert all("--spot" in call for call in creates)
  assert not any("--config=c.py" in call for call in creates)
  assert "The run is finished" in capfd.readouterr().out


def test_keep_resumes_what_was_stopped_and_returns_what_failed(cloud, capfd):
  def ends(code):
    def wait():
      for i in range(2):
        cloud.wait_for(i, "goldenpath-job/exit_code", f"{code}\n")

    return wait

  def fail():
    cloud.wait_for(0, "goldenpath-job/exit_code", "75\n")
    cloud.write("ends", "3")

  cloud.write("ends", "75")
  code = _keep(cloud, [lambda: None, ends(75), fail, ends(3)])
  # Created; set up and started; ended 75, started again; ended 3.
  assert code == 3
  assert "exit code 3" in capfd.readouterr().err
  assert cloud.verbs().count("scp") == 1


@pytest.mark.parametrize(("codes", "worst"), [((76, 3), 3), ((76, 76), 76)])
def test_keep_returns_the_code_of_the_worker_that_others_lost(codes, worst):
  jobs = "".join(f"job {i} ended {code}\n" for i, code in enumerate(codes))
  cloud = types.SimpleNamespace(
    state=lambda: gcloud.ACTIVE, ask=lambda script: jobs
  )
  assert tpu._look(cloud, argparse.Namespace()) == worst


def test_keep_starts_again_what_lost_itself_five_times():
  calls = []
  cloud = types.SimpleNamespace(
    target=gcloud.Target("proj", "us-central2-b", "pod"),
    dry_run=False,
    state=lambda: gcloud.ACTIVE,
    ask=lambda script: "job 0 ended 76\njob 1 ended 76\n",
    ssh=calls.append,
  )
  assert _keep_on(cloud, [lambda: None] * 9) == 76
  assert len(calls) == 5
  assert all("lm.main" in script for script in calls)


def test_keep_gives_up_after_five_failures_in_a_row(cloud):
  cloud.write("broken", "no network")
  naps = []
  with pytest.raises(gcloud.GcloudError, match="no network"):
    _keep(cloud, [lambda: naps.append(1)] * 9)
  assert len(naps) == 4

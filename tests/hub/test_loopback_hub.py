"""Tests of the loopback Hub with clients of huggingface_hub in separate processes."""

from .clients import run
from .server import LoopbackHub

ROUND_TRIP = """
import sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

api = HfApi()
assert api.whoami()["name"] == "ada"
api.create_repo("ada/arm")
api.create_repo("ada/arm", exist_ok=True)
empty = api.model_info("ada/arm").sha
card = b"---\\nlicense: mit\\n---\\nhello\\n"
weights = bytes(range(256)) * 40
adds = [CommitOperationAdd("README.md", card), CommitOperationAdd("model.safetensors", weights)]
first = api.create_commit("ada/arm", adds, commit_message="first", parent_commit=empty)
api.create_tag("ada/arm", tag="v1")
api.create_branch("ada/arm", branch="later", revision="v1")
again = [CommitOperationAdd("README.md", card), CommitOperationAdd("model.safetensors", weights)]
assert api.create_commit("ada/arm", again, commit_message="again").oid == first.oid
delete = [CommitOperationDelete("README.md")]
second = api.create_commit("ada/arm", delete, commit_message="second", parent_commit=first.oid)
try:
    api.create_commit("ada/arm", [CommitOperationDelete("model.safetensors")], commit_message="late",
                      parent_commit=first.oid)
except HfHubHTTPError as error:
    assert error.response.status_code == 412
refs = api.list_repo_refs("ada/arm")
assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second.oid, "later": first.oid}
assert [commit.title for commit in api.list_repo_commits("ada/arm")] == ["second", "first", "initial commit"]
assert api.get_paths_info("ada/arm", ["model.safetensors"])[0].lfs.size == len(weights)
folder = Path(snapshot_download("ada/arm", revision="v1"))
assert folder.name == first.oid
assert (folder / "README.md").read_bytes() == card and (folder / "model.safetensors").read_bytes() == weights
assert not (Path(snapshot_download("ada/arm")) / "README.md").exists()
for name, revision, kind in (("no", "main", EntryNotFoundError), ("README.md", "v9", RevisionNotFoundError)):
    try:
        hf_hub_download("ada/arm", name, revision=revision)
        raise SystemExit("found a file that does not exist")
    except kind:
        pass
"""


def test_huggingface_hub_uploads_and_downloads(tmp_path):
    """The client uploads in parts, deletes, tags, branches, loses a race, pushes no change, and misses files."""
    with LoopbackHub(part_size=4096) as hub:
        code, _, errors = run(hub.url, ROUND_TRIP, home=tmp_path)
        assert code == 0, errors
        assert len(hub.called("PUT /storage/.*/[123]$")) == 3
        assert hub.called("POST /storage/") and hub.called("objects/verify")


OTHER_USER = """
import sys
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

def kind(call):
    try:
        call()
        return "done"
    except HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"

api = HfApi()
print(kind(lambda: hf_hub_download("ada/hidden", "config.json")))
print(kind(lambda: hf_hub_download("ada/gated", "config.json")))
print(kind(lambda: api.create_repo("ada/new")))
print(kind(lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="ada/gated")))
"""


def test_other_users_cannot_read_private_or_write_repositories(hub, tmp_path):
    hub.store.create("models", "ada/hidden", private=True)
    hub.store.create("models", "ada/gated").gated = True
    code, output, errors = run(hub.url, OTHER_USER, home=tmp_path, token="token-of-bob")
    assert (code, output.splitlines()) == (
        0,
        ["RepositoryNotFoundError 404", "GatedRepoError 403", "HfHubHTTPError 403", "HfHubHTTPError 403"],
    ), errors
    _, output, _ = run(hub.url, OTHER_USER, home=tmp_path, token="no-token")
    assert output.splitlines()[2] == "HfHubHTTPError 401"


FAULTS = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("ada/arm")
print(api.upload_file(path_or_fileobj=b"x" * 20_000, path_in_repo="big", repo_id="ada/arm").oid)
"""


def test_requested_faults_happen_once(hub, tmp_path):
    hub.fault("PUT /storage", cut="before")
    hub.fault("preupload", status=503)
    code, output, errors = run(hub.url, FAULTS, home=tmp_path)
    assert code == 0, errors
    assert output == hub.model("ada/arm").head.oid
    assert len(hub.called("PUT /storage")) == len(hub.called("preupload")) == 2

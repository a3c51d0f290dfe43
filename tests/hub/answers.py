"""Responses of the loopback Hub: one function for each route."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import yaml

from .store import LARGE, Commit, File, Repository, sha256

NAMES = {"kind": r"(?P<kind>models|datasets)", "repo": r"(?P<repo>[\w.-]+/[\w.-]+)", "rev": r"(?P<rev>[^/]+)"}
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Call:
    """One HTTP request, with the Hub that receives it."""

    hub: Any
    method: str
    query: dict[str, str]
    body: bytes
    token: str
    headers: dict[str, str]
    names: dict[str, str]  # named groups of the route's pattern

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def user(self) -> str | None:
        return self.hub.store.tokens.get(self.token)


@dataclass
class Answer:
    """HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class RefusalError(Exception):
    """Stops a route function; its answer is sent as the response."""

    def __init__(self, answer: Answer):
        self.answer = answer


def answer_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def failure(status: int, message: str, code: str = "") -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    answer = answer_json({"error": message}, status)
    return Answer(status, answer.body, answer.headers | headers)


def with_refusals(answer: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
    """Wrap a route function: check the token, and send the answer of a RefusalError."""

    def wrapped(call: Call) -> Answer:
        try:
            if call.token and call.user is None:
                raise RefusalError(failure(401, "Invalid credentials in Authorization header"))
            return answer(call)
        except RefusalError as refusal:
            return refusal.answer

    return wrapped


def find_repository(call: Call, write: bool = False) -> Repository:
    """Return the repository of a request if its user may read it, and write to it if `write`."""
    name = call.names["repo"]
    repository = call.hub.store.repositories.get((call.names.get("kind", "models"), name))
    is_owner = call.user == name.split("/")[0]
    if repository is None or (repository.private and not is_owner):
        raise RefusalError(failure(404 if call.user else 401, "Repository not found", "RepoNotFound"))
    if write and not is_owner:
        raise RefusalError(failure(403 if call.user else 401, "You don't have the rights to do this"))
    return repository


def find_commit(call: Call, repository: Repository) -> Commit:
    commit = repository.find(call.names.get("rev", "main"))
    if commit is None:
        raise RefusalError(failure(404, "Invalid rev id", "RevisionNotFound"))
    return commit


# Accounts and repositories


def whoami(call: Call) -> Answer:
    if call.user is None:
        return failure(401, "Invalid credentials in Authorization header")
    return answer_json({"type": "user", "name": call.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})


def create(call: Call) -> Answer:
    request = call.json
    kind = f"{request.get('type') or 'model'}s"
    name = f"{request.get('organization') or call.user}/{request['name']}"
    if call.user is None:
        return failure(401, "Invalid username or password.")
    if call.user != name.split("/")[0]:
        return failure(403, "You don't have the rights to create a model under this namespace")
    url = f"{call.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
    if (kind, name) in call.hub.store.repositories:
        return answer_json({"error": "You already created this repo", "url": url}, 409)
    call.hub.store.create(kind, name, request.get("visibility") == "private")
    return answer_json({"url": url, "name": name})


def validate_yaml(call: Call) -> Answer:
    """Check that the front matter is YAML, and that three of its values are strings."""
    parts = call.json["content"].split("---\n")
    errors = []
    try:
        values = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
    except yaml.YAMLError as error:
        values, errors = {}, [{"message": f"YAML: {error}"}]
    for name in ("license", "pipeline_tag", "library_name"):
        if not isinstance(values.get(name, ""), str):
            errors.append({"message": f'"{name}" must be a string'})
    return answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def info(call: Call) -> Answer:
    repository = find_repository(call)
    commit = find_commit(call, repository)
    files = [{"rfilename": path} for path in sorted(commit.files)]
    values = {"id": repository.id, "modelId": repository.id, "sha": commit.oid, "private": repository.private}
    return answer_json(
        values | {"gated": "manual" if repository.gated else False, "disabled": False, "tags": [], "siblings": files}
    )


def tree(call: Call) -> Answer:
    commit = find_commit(call, find_repository(call))
    if "path" in call.names:
        return failure(404, "no such folder", "EntryNotFound")
    return answer_json([file.describe(path) for path, file in sorted(commit.files.items())])


def paths_info(call: Call) -> Answer:
    files = find_commit(call, find_repository(call)).files
    requested = parse_qs(call.body.decode())["paths"]
    return answer_json([files[path].describe(path) for path in requested if path in files])


def refs(call: Call) -> Answer:
    repository = find_repository(call)

    def describe_refs(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

    values = {"branches": describe_refs("heads", repository.branches), "tags": describe_refs("tags", repository.tags)}
    return answer_json(values | {"converts": []})


def commits(call: Call) -> Answer:
    repository = find_repository(call)
    history = repository.history(find_commit(call, repository).oid)
    return answer_json(
        [{"id": commit.oid, "title": commit.title, "message": "", "date": DATE, "authors": []} for commit in history]
    )


def tag(call: Call) -> Answer:
    repository = find_repository(call, write=True)
    name = call.json["tag"]
    if name in repository.tags:
        return failure(409, "Tag reference exists already")
    repository.tags[name] = find_commit(call, repository).oid
    return Answer(201)


def branch(call: Call) -> Answer:
    repository = find_repository(call, write=True)
    name = call.names["rev"]
    if name in repository.branches:
        return failure(409, "Reference already exists")
    call.names["rev"] = call.json.get("startingPoint", "main")
    repository.branches[name] = find_commit(call, repository).oid
    return Answer(201)


# Uploads


def preupload(call: Call) -> Answer:
    files = find_commit(call, find_repository(call, write=True)).files
    described = []
    for file in call.json["files"]:
        path = file["path"]
        large = file["size"] >= LARGE or path.endswith((".safetensors", ".bin"))
        existing = {"oid": files[path].etag} if path in files else {}
        described.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | existing)
    return answer_json({"files": described})


def batch(call: Call) -> Answer:
    find_repository(call, write=True)
    return answer_json({"transfer": "basic", "objects": [large_object(call, item) for item in call.json["objects"]]})


def large_object(call: Call, item: dict[str, Any]) -> dict[str, Any]:
    """Return where to upload a large file, or no `actions` if the Hub has it already."""
    oid, size = item["oid"], item["size"]
    if oid in call.hub.store.large:
        return item
    upload: dict[str, Any] = {"href": f"{call.hub.url}/storage/{oid}"}
    if call.hub.part_size is not None and size > call.hub.part_size:
        count = -(-size // call.hub.part_size)
        parts = {str(part): f"{call.hub.url}/storage/{oid}/{part}" for part in range(1, count + 1)}
        upload["header"] = {"chunk_size": str(call.hub.part_size)} | parts
    verify = {"href": f"{call.hub.url}/{call.names['repo']}.git/info/lfs/objects/verify"}
    return item | {"actions": {"upload": upload, "verify": verify}}


def put_object(call: Call) -> Answer:
    oid, part = call.names["oid"], call.names.get("part")
    if part is not None:
        call.hub.store.parts[oid, int(part)] = call.body
        return Answer(headers={"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})
    return keep_object(call, oid, call.body)


def complete_parts(call: Call) -> Answer:
    oid = call.names["oid"]
    numbers = [part["partNumber"] for part in call.json["parts"]]
    return keep_object(call, oid, b"".join(call.hub.store.parts.pop((oid, number)) for number in numbers))


def keep_object(call: Call, oid: str, data: bytes) -> Answer:
    if sha256(data) != oid:
        return failure(422, "the content has another hash")
    call.hub.store.large[oid] = data
    return Answer()


def verify(call: Call) -> Answer:
    stored = call.hub.store.large.get(call.json["oid"])
    return Answer() if stored is not None and len(stored) == call.json["size"] else failure(404, "no such object")


def commit(call: Call) -> Answer:
    repository = find_repository(call, write=True)
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = lines[0]["value"]
    before = find_commit(call, repository)
    if header.get("parentCommit", before.oid) != before.oid:
        return failure(412, "A commit has happened since. Please refresh and try again.")
    files = dict(before.files)
    for line in lines[1:]:
        apply(call, files, line["key"], line["value"])
    new = repository.commit(header["summary"], files, call.names["rev"])
    url = f"{call.hub.url}/{repository.id}/commit/{new.oid}"
    return answer_json({"success": True, "commitOid": new.oid, "commitUrl": url, "pullRequestUrl": None})


def apply(call: Call, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), large=False)
    elif key == "lfsFile":
        if value["oid"] not in call.hub.store.large:
            raise RefusalError(failure(400, f"{path}: no object {value['oid']}"))
        files[path] = File(call.hub.store.large[value["oid"]], large=True)
    elif path not in files:
        raise RefusalError(failure(400, f"{path} cannot be deleted: there is no such file"))
    else:
        del files[path]


# Downloads


def resolve(call: Call) -> Answer:
    repository = find_repository(call)
    if repository.gated and call.user != repository.id.split("/")[0]:
        return failure(403 if call.user else 401, "Access to this model is restricted", "GatedRepo")
    at = find_commit(call, repository)
    headers = {"X-Repo-Commit": at.oid}
    file = at.files.get(call.names["path"])
    if file is None:
        answer = failure(404, "Entry not found", "EntryNotFound")
        return Answer(404, answer.body, answer.headers | headers)
    headers["ETag"] = f'"{file.etag}"'
    if file.large:
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        return Answer(302, b"", headers | linked | {"Location": f"{call.hub.storage_url}/storage/{file.etag}"})
    return Answer(200, file.data, headers | {"Content-Length": str(len(file.data))})


def get_object(call: Call) -> Answer:
    data = call.hub.store.large[call.names["oid"]]
    start = int(call.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
    return Answer(206 if start else 200, data[start:], {"Content-Length": str(len(data) - start)})


def routes() -> list[tuple[str, str, Callable[[Call], Answer]]]:
    api = r"/api/{kind}/{repo}"
    table: list[tuple[str, str, Callable[[Call], Answer]]] = [
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate_yaml),
        ("GET", api, info),
        ("GET", api + "/revision/{rev}", info),
        ("GET", api + "/tree/{rev}(/(?P<path>.+))?", tree),
        ("GET", api + "/refs", refs),
        ("GET", api + "/commits/{rev}", commits),
        ("POST", api + "/paths-info/{rev}", paths_info),
        ("POST", api + "/tag/{rev}", tag),
        ("POST", api + "/branch/{rev}", branch),
        ("POST", api + "/preupload/{rev}", preupload),
        ("POST", api + "/commit/{rev}", commit),
        ("POST", r"/((?P<kind>datasets)/)?{repo}\.git/info/lfs/objects/batch", batch),
        ("POST", r"/{repo}\.git/info/lfs/objects/verify", verify),
        ("GET|HEAD", "/((?P<kind>datasets)/)?{repo}/resolve/{rev}/(?P<path>.+)", resolve),
        ("PUT", r"/storage/(?P<oid>\w+)(/(?P<part>\d+))?", put_object),
        ("POST", r"/storage/(?P<oid>\w+)", complete_parts),
        ("GET|HEAD", r"/storage/(?P<oid>\w+)", get_object),
    ]
    return [(method, expand(pattern), with_refusals(answer)) for method, pattern, answer in table]


def expand(pattern: str) -> str:
    for name, group in NAMES.items():
        pattern = pattern.replace("{" + name + "}", group)
    return pattern


ROUTES = routes()

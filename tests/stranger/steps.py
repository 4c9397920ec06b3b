"""What a stranger types, with the files of a release in `dist` and the programs of examples/first-call."""

from dataclasses import dataclass

KUBERNETES = ("1.29", "1.35", "1.36", "1.37")  # the oldest that the chart permits, and those that Kubernetes supports


@dataclass(frozen=True)
class Step:
    """Commands of bash, and what the last of them prints if they do what they should."""

    name: str
    commands: tuple[str, ...]
    prints: str = ""


_VALUES = (
    "settings.identity=jwt,settings.jwt_issuer=https://dev.example,settings.jwt_audience=conversations,"
    "settings.jwt_jwks=https://dev.example/jwks.json"
)
STEPS = (
    Step("check the files", ("(cd dist && sha256sum --quiet --check SHA256SUMS)",)),
    Step(
        "install the server",
        (
            "python3 -m venv server",
            'server/bin/pip install --quiet "$(ls dist/conversation_service-*.whl)[embedded]"',
        ),
    ),
    Step(
        "make credentials",
        ("server/bin/conversation-service dev-credentials credentials --principal alice >credentials.env",),
    ),
    Step(
        "start a server",
        (
            ". ./credentials.env",
            "server/bin/conversation-service serve --ephemeral >served.json 2>server.log & echo $! >server.pid",
            "until grep -q address served.json; do kill -0 $(cat server.pid); sleep 0.1; done",
            "cp credentials.env client.env",
            """sed -n 's/.*"address": "\\([^"]*\\)".*/export CONVERSATIONS_TARGET=\\1/p' served.json >>client.env""",
            ". ./client.env",
        ),
    ),
    Step(
        "call it from Python",
        (
            "python3 -m venv client",
            "client/bin/pip install --quiet dist/conversation_service_client-*.whl",
            "client/bin/python first-call/python/main.py",
        ),
        prints="alice",
    ),
    Step(
        "get tools from the package index",
        ("python3 -m venv tools", "tools/bin/pip install --quiet buf-bin kubernetes-validate"),
    ),
    Step(
        "call it from Go",
        (
            "cp dist/conversation-service-*.binpb first-call/contract.binpb",
            "(cd first-call/go && PATH=~/tools/bin:$PATH go generate && go build)",
            "first-call/go/firstcall",
        ),
        prints="alice",
    ),
    Step(
        "call it from Node",
        (
            "(cd first-call/node && npm ci --silent)",
            "DESCRIPTORS=$(ls dist/conversation-service-*.binpb) node first-call/node/main.js",
        ),
        prints="alice",
    ),
    Step(
        "call it from Java",
        (
            "mkdir -p first-call/protos",
            "tar xzf dist/conversation-service-protos-*.tar.gz --strip-components 1 -C first-call/protos",
            "mvn --quiet --batch-mode --file first-call/java package",
            "java -jar first-call/java/target/first-call.jar",
        ),
        prints="alice",
    ),
    *(
        Step(
            f"render the chart for Kubernetes {version}",
            (
                f"helm template dist/conversations-*.tgz --kube-version {version}.0 --set {_VALUES} >rendered.yaml",
                f"tools/bin/kubernetes-validate --quiet --strict --kubernetes-version {version} rendered.yaml",
            ),
        )
        for version in KUBERNETES
    ),
    Step(
        "stop the server",
        ("kill $(cat server.pid)", "while kill -0 $(cat server.pid) 2>/dev/null; do sleep 0.1; done"),
    ),
)

# The service without the private PostgreSQL. docs/kubernetes.md describes its settings.
FROM python:3.13-slim AS base

# The dependencies have a layer of their own, which a change of the code does not rebuild.
FROM base AS dependencies
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *project["optional-dependencies"]["otlp"], sep="\n")' > requirements.txt \
 && python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

FROM dependencies AS code
COPY README.md LICENSE ./
COPY server server
COPY generated generated
RUN python -m pip --python /venv/bin/python install --no-cache-dir --no-deps --target /app '.[otlp]' \
 && PYTHONPATH=/app python -m pip --python /venv/bin/python check

FROM base
# No installers. The user has a name, because some libraries look it up.
RUN rm -r "$(python -c 'import ensurepip; print(*ensurepip.__path__)')" \
 && python -m pip uninstall --yes --root-user-action=ignore pip \
 && groupadd --gid 65532 conversations \
 && useradd --uid 65532 --gid 65532 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin conversations \
 && install --directory --owner=65532 --group=65532 --mode=0770 /run/conversations
COPY --from=dependencies /venv /venv
COPY --from=code /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CONVERSATIONS_PROFILE=prod \
    CONVERSATIONS_LISTEN=0.0.0.0:50051
WORKDIR /app
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Conversation Service" \
      org.opencontainers.image.description="The OpenAI Conversations API as a typed gRPC microservice over PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 65532:65532
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "server", "healthcheck"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["serve"]

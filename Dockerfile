# The service without the embedded database: set CONVERSATIONS_DATABASE_URL.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY generated generated
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM python:3.13-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CONVERSATIONS_LOG_FORMAT=json
USER 65532:65532
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "server", "healthcheck"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["serve"]

# The digest covers all platforms, as published on 2026-10-08: Python 3.12.15 on Debian 13.
ARG BASE=docker.io/library/python:3.12-slim@sha256:05cda9777409a9c3ffddd94a4c476b79f0769a0b4857f0c7ed9226b6800b0d6f

# hadolint ignore=DL3006
FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/hyperfleet \
    && python -m pip --python /opt/hyperfleet/bin/python install --no-cache-dir --no-compile --no-deps \
        --require-hashes --only-binary=:all: --requirement requirements.lock
COPY . .
ARG VERSION=0.1.0
ARG REVISION=unknown
# Compiled here, since nothing can be written at run time, and hash-based, since not every tool that builds
# images preserves the times of files.
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" HYPERFLEET_COMMIT="${REVISION}" \
        python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m pip --python /opt/hyperfleet/bin/python install --no-cache-dir --no-compile --no-deps \
        --no-index /wheels/*.whl \
    && python -m pip --python /opt/hyperfleet/bin/python check \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/hyperfleet/lib \
    && mkdir /app \
    && ln -s /opt/hyperfleet/bin/hyperfleet /app/hyperfleet-api

# hadolint ignore=DL3006
FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="HyperFleet API" \
      org.opencontainers.image.description="The REST data layer of a fleet of Kubernetes clusters" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /opt/hyperfleet /opt/hyperfleet
# The path of the original's program, by which its chart and its operator run migrations.
COPY --from=build /app /app
ENV PATH=/opt/hyperfleet/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
# Numeric, so that Kubernetes can tell that it is not root; any other user works as well.
USER 10001:10001
EXPOSE 8000 8080 8083
STOPSIGNAL SIGTERM
# Kubernetes uses its own probes instead. The request must bypass any proxy set in the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-IS", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8083/healthz', timeout=4)"]
ENTRYPOINT ["hyperfleet"]
CMD ["serve"]

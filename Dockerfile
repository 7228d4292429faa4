FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels hyperfleet-api
# A number, so that Kubernetes can tell that it is not root; any other works as well.
USER 1001
EXPOSE 8000 8080 8083
ENTRYPOINT ["hyperfleet"]
CMD ["serve"]

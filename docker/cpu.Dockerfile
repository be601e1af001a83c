# Runs and serves bundles on processors. From the checkout:
#   docker build --file docker/cpu.Dockerfile --tag controlnext:cpu .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/build/shapes-fp16:/bundle:ro" controlnext:cpu
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS install
ARG EXTRAS=cpu,hub,openvino,preprocess,serve,video
WORKDIR /source
RUN python -m venv /opt/controlnext
COPY pyproject.toml MANIFEST.in README.md CHANGELOG.md SECURITY.md LICENSE constraints.txt ./
COPY controlnext controlnext
COPY engines engines
COPY export export
COPY runtime runtime
RUN /opt/controlnext/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}
RUN useradd --uid 1001 --create-home controlnext
COPY --from=install /opt/controlnext /opt/controlnext
ENV PATH=/opt/controlnext/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1001
WORKDIR /home/controlnext
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["controlnext"]
CMD ["serve", "--host", "0.0.0.0", "/bundle"]

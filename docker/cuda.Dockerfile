# Runs and serves bundles on NVIDIA's GPUs, without PyTorch: ONNX Runtime with CUDA, and TensorRT. From the checkout:
#   docker build --file docker/cuda.Dockerfile --tag controlnext:cuda .
#   docker run --rm --gpus all --publish 127.0.0.1:8000:8000 --volume "$PWD/build/sdxl:/bundle" controlnext:cuda
# onnxruntime-gpu is built for CUDA 13 and cuDNN 9, which the image of NVIDIA has.
ARG CUDA=13.0.2-cudnn-runtime-ubuntu24.04

FROM nvidia/cuda:${CUDA} AS install
ARG EXTRAS=gpu,hub,preprocess,serve,tensorrt,video
# a version of Ubuntu's Python that is not the newest of its release is soon gone
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
RUN python3 -m venv /opt/controlnext
COPY pyproject.toml MANIFEST.in README.md CHANGELOG.md SECURITY.md LICENSE constraints.txt ./
COPY controlnext controlnext
COPY engines engines
COPY export export
COPY runtime runtime
RUN /opt/controlnext/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM nvidia/cuda:${CUDA}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1001 --create-home controlnext
COPY --from=install /opt/controlnext /opt/controlnext
ENV PATH=/opt/controlnext/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1001
WORKDIR /home/controlnext
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["controlnext"]
CMD ["serve", "--host", "0.0.0.0", "/bundle"]

# The build machine: exports checkpoints, compares them with PyTorch and builds engines. From the checkout:
#   docker build --file docker/build.Dockerfile --tag controlnext:build .
#   docker run --rm --gpus all --volume "$PWD/build:/work" controlnext:build export --model sdxl --precision fp16 \
#       --control Eugeoter/controlnext-sdxl-anime-canny --output sdxl --backend tensorrt
# Without a GPU: docker build --build-arg BASE=ubuntu:24.04 --build-arg EXTRAS=bench,cpu,export,preprocess,video ...
ARG BASE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE}
ARG EXTRAS=bench,export,gpu,preprocess,rtx,tensorrt,video
# a version of Ubuntu's Python that is not the newest of its release is soon gone
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1001 --create-home controlnext \
    && install --directory --owner 1001 /work \
    && python3 -m venv /opt/controlnext
WORKDIR /source
COPY pyproject.toml MANIFEST.in README.md CHANGELOG.md SECURITY.md LICENSE constraints.txt ./
COPY controlnext controlnext
COPY engines engines
COPY export export
COPY runtime runtime
RUN /opt/controlnext/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
ENV PATH=/opt/controlnext/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1001
WORKDIR /work
# what runs here are commands that end, no server
HEALTHCHECK NONE
ENTRYPOINT ["controlnext"]
CMD ["--help"]

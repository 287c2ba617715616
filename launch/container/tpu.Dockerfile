# An image for TPUs. From the top of the repository:
#   docker build --file launch/container/tpu.Dockerfile --tag bsq-jax:tpu .
#   docker run --privileged --net host --shm-size 8g --volume "$PWD/runs:/runs" bsq-jax:tpu \
#     python -m bsq_jax.main --config configs/quickstart.py --workdir /runs/quickstart
# libtpu comes with JAX. --privileged gives the container the TPU devices of a TPU VM; on GKE the
# limit google.com/tpu does.
FROM python:3.12-slim

# The compilation cache outlives the container where /runs is a volume.
ENV PYTHONUNBUFFERED=1 \
    JAX_COMPILATION_CACHE_DIR=/runs/.compiled \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1

WORKDIR /bsq_jax
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt "jax[tpu]"
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

CMD ["python", "-m", "bsq_jax", "--help"]

# The gateway in one image: `gateway serve`, `gateway worker`, `gateway migrate` and the operator's commands.
# Python 3.11 on Debian 12 is what the tests run on.

FROM python:3.11-slim-bookworm AS packages
RUN python -m venv /opt/gateway
COPY requirements.lock .
RUN /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r requirements.lock
# The gateway's own code is copied, not installed: the layer of packages stays as it is when only the code changes.
RUN printf '%s\n' '#!/opt/gateway/bin/python' 'from app.cli import main' 'main()' > /opt/gateway/bin/gateway \
 && chmod 755 /opt/gateway/bin/gateway

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --home-dir /srv/gateway --shell /usr/sbin/nologin gateway \
 && install -d -o gateway -g gateway /var/lib/gateway/files /var/lib/gateway/spool
COPY --from=packages /opt/gateway /opt/gateway
WORKDIR /srv/gateway
COPY pyproject.toml LICENSE THIRD_PARTY_NOTICES.md ./
COPY migrations migrations
COPY worker worker
COPY app app
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONPATH=/srv/gateway \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production \
    HOST=0.0.0.0 \
    PORT=8081 \
    LOG_FORMAT=json
USER gateway
EXPOSE 8081
# For the API. A worker serves no /healthz: switch this off there, as docker-compose.yml does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=3); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["gateway", "serve"]

# One node. Redis and PostgreSQL are elsewhere: docker-compose.yml brings them.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked && strip -o /redeemer target/dist/redeemer

FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /var/lib/redeemer --create-home redeemer
COPY --from=build /redeemer /usr/local/bin/redeemer
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /var/lib/redeemer
ENV REDEEMER_DATA__DIR=/var/lib/redeemer REDEEMER_HTTP__BIND=0.0.0.0:8080 REDEEMER_LOG__FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=2s --timeout=3s --start-period=10s CMD ["redeemer", "healthcheck"]
ENTRYPOINT ["redeemer"]
CMD ["serve"]

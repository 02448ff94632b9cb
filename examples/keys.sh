#!/bin/sh
# Several apps on one server, each with a key of its own: none can read another's jobs or use up another's part.
#
#     sh examples/keys.sh        a server of its own on port 8765, in a folder that is deleted at the end
set -eu

FOURSTEP_DATA_DIR=$(mktemp -d)
export FOURSTEP_DATA_DIR # every command below is about this server; a service has the line in its unit
port=${PORT:-8765}
server=http://localhost:$port
app=fal-ai/lcm-sd15-i2i
input='{"prompt": "a beach", "image_url": "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"}'

# 1. A key for each app. It is shown once and kept as a hash, so put it where the app keeps its secrets.
shop=$(fourstep keys add shop | head -n 1)
nightly=$(fourstep keys add nightly | head -n 1)

# 2. Without limits of its own a key gets half of everything. The nightly job shall get less.
fourstep keys limit nightly --queued 2

fourstep serve --model "${MODEL:-demo}" --port "$port" 2>"$FOURSTEP_DATA_DIR/log" &
trap 'kill $!; wait; rm -r "$FOURSTEP_DATA_DIR"' EXIT
until curl -sf -o /dev/null "$server/ready"; do sleep 0.2; done

# ask KEY METHOD PATH [CURL'S OPTIONS]: the status that the server answers with.
ask() { key=$1 method=$2 path=$3; shift 3
  curl -s -o /dev/null -w '%{http_code}' -X "$method" -H "Authorization: Key $key" "$@" "$server$path"; }
json="Content-Type: application/json"

# 3. Each app calls with its own key (fal's clients: FAL_KEY). Whoever has none is refused.
echo "shop:              $(ask "$shop" POST "/run/$app" -H "$json" -d "$input")"
echo "a stranger:        $(ask nobody:knows POST "/run/$app" -H "$json" -d "$input")"

# 4. A job belongs to the key that submitted it. To every other key it does not exist.
job=$(curl -s -H "Authorization: Key $shop" -H "$json" -d "$input" "$server/queue/$app" \
  | sed -n 's/.*"request_id":"\([^"]*\)".*/\1/p')
echo "shop's own job:    $(ask "$shop" GET "/queue/$app/requests/$job/status/stream")"
echo "seen by nightly:   $(ask "$nightly" GET "/queue/$app/requests/$job/status/stream")"

# 5. A key can be taken back at any time; a running server obeys at once.
fourstep keys revoke nightly
echo "nightly, revoked:  $(ask "$nightly" POST "/run/$app" -H "$json" -d "$input")"
fourstep keys list

#!/bin/sh
# Ask a fourstep server for a picture with nothing but curl.
#
#     fourstep serve --model auto
#     sh examples/curl.sh [YOUR_PICTURE.jpg]        writes output.jpg
set -eu

server=${SERVER_URL:-http://localhost:8000}
app=fal-ai/lcm-sd15-i2i
# A server without keys takes any; one with keys wants yours.
key="Authorization: Key ${FAL_KEY:-any:thing}"
json="Content-Type: application/json"

# The value of a field in a JSON answer.
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }

# 1. The input. A picture of your own is uploaded: first a URL for it is asked for, then the bytes go there.
image_url=https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png
if [ $# -gt 0 ]; then
  permit=$(curl -sS --fail-with-body -H "$key" -H "$json" -d '{"content_type": "image/jpeg"}' \
    "$server/rest/storage/upload/initiate")
  image_url=$(echo "$permit" | field file_url)
  curl -sS --fail-with-body -o /dev/null -H "Content-Type: image/jpeg" -T "$1" "$(echo "$permit" | field upload_url)"
fi
input="{\"prompt\": \"masterpiece, colorful, photo of a beach in hawaii, sun\", \"image_url\": \"$image_url\", \"seed\": 42}"

# 2. Submit. When this answers, the job is on disk: a restart of the server does not lose it.
#    (To wait for the picture in one call instead: POST the same to $server/run/$app.)
submitted=$(curl -sS --fail-with-body -H "$key" -H "$json" -d "$input" "$server/queue/$app")
echo "request $(echo "$submitted" | field request_id)"

# 3. Follow it to its end. The stream has one line for each change and ends with COMPLETED.
curl -sSN --fail-with-body -H "$key" "$(echo "$submitted" | field status_url)/stream" | field status

# 4. The result, and the picture in it.
result=$(curl -sS --fail-with-body -H "$key" "$(echo "$submitted" | field response_url)")
curl -sS --fail-with-body -o output.jpg "$(echo "$result" | field url)"
echo "output.jpg, seed $(echo "$result" | sed -n 's/.*"seed":\([0-9]*\).*/\1/p')"

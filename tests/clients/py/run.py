import fal_client
from kit import APP, INPUT, say

say(fal_client.run(APP, INPUT))

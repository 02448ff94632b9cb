"""fal's protocol, pure: ids, hosts, headers, inputs, outputs, errors. Read endpoints, hosts, schemas, decoding."""

"""What speaks to the network: sockets, the HTTP and websocket protocols under the app, and TLS.

Read listen, then http_protocol, websocket_protocol, tls, certificates, takeover.
"""

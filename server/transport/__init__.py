"""What speaks to the network: sockets, the HTTP and websocket protocols under the app, and TLS.

Read listen, then room, http_protocol with refusal, cycle_transport and send_deadline, websocket_protocol, open_files,
tls, certificates, takeover.
"""

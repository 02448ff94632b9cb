"""Addresses and URLs that must not be reached: what a caller would try to get at the machine's own network."""

_INSIDE = """
    0.0.0.0 0.0.0.1 0.1.2.3 0.255.255.255
    10.0.0.0 10.0.0.1 10.255.255.255
    100.64.0.1 100.100.100.200 100.127.255.255
    127.0.0.1 127.0.0.53 127.1.2.3 127.255.255.255
    168.63.129.16
    169.254.0.1 169.254.169.254 169.254.170.2 169.254.255.255
    172.16.0.1 172.17.0.1 172.31.255.255
    192.0.0.1 192.0.0.8 192.0.0.170 192.0.0.192 192.0.2.1
    192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 192.168.255.255 192.175.48.1
    198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
    224.0.0.1 224.0.0.251 233.252.0.1 239.255.255.250 240.0.0.1 254.1.2.3 255.255.255.255

    :: ::1 ::2 ::127.0.0.1 ::10.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8
    ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::8.8.8.8
    64:ff9b:1::1 64:ff9b:1:ffff:ffff:ffff:7f00:1
    100::1 100:0:0:1::1
    2001::1 2001:0:7f00:1::1 2001:0:ce49:7601:e866:efff:62c3:fffe
    2001:1::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1
    2001:db8::1 2001:db8:ffff::1
    2002::1 2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe::1 2002:808:808::1
    2600:1f00::5efe:127.0.0.1 2600:1f00::5efe:10.0.0.1 2a00:1450:4001:80b:200:5efe:a9fe:a9fe
    2620:4f:8000::1 3ffe::1 3fff::1 3fff:fff::1
    4000::1 5f00::1 8000::1
    fc00::1 fd00::1 fd00:ec2::254 fd12:3456:789a::1 fdff:ffff::1
    fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 feff::1
    ff00::1 ff01::1 ff02::1 ff02::fb ff05::1:3 ff0e::1
"""
ADDRESSES = _INSIDE.split()

_OUTSIDE = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.216.34 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    168.63.129.15 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.167.255.255
    192.169.0.0 198.17.255.255 198.20.0.0 203.0.114.0 223.255.255.255
    2001:200::1 2001:4860:4860::8888 2003::1 2400:cb00::1 2606:4700:4700::1111 2620:fe::fe 2a00:1450:4001:80b::200e
    2c0f:fb50:4002::1
"""
PUBLIC = _OUTSIDE.split()

# What parsers disagree about, or what was never http.
URLS = [
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "gopher://127.0.0.1:25/_HELO",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "jar:http://example.com!/a",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "javascript:alert(1)",
    "view-source:http://127.0.0.1/",
    "http:127.0.0.1/",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    "//127.0.0.1/",
    "127.0.0.1",
    "localhost:80/",
    "http://",
    "http://?",
    "http://:80/",
    "http://user@example.com/",
    "http://user:password@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1@example.com/",
    "http://example.com:80@127.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://127.0.0.1\\.example.com/",
    "http:\\\\127.0.0.1\\",
    "http://exa\tmple.com/",
    "http://127.0.0.1\r\nHost: inside/",
    "http://example.com/a\r\nX-Injected: 1",
    "http://example.com/\x00",
    "http://127.0.0.1%2f@example.com/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%00.example.com/",
    "http://[::1%25lo]/",
    "http://[fe80::1%25eth0]/",
    "http://[::1/",
    "http://::1/",
    "http://[127.0.0.1]/",
    "http://[v1.fe80::a]/",
    "http://[::ffff:127.0.0.1].example.com/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0x/",
    "http://256.256.256.256/",
    "http://127.0.0.1.1/",
    "http://1.2.3.4.5/",
    "http://example.0x7f/",
    "http://a..example.com/",
    "http://.example.com/",
    "http://-example.com/",
    "http://example.com../",
    "http://exam ple.com/",
    "http://example.com,127.0.0.1/",
    "http://example.com;127.0.0.1/",
    "http://*.example.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 127 + "com/",
    "http://example.com:0/",
    "http://example.com:22/",
    "http://example.com:25/",
    "http://example.com:65536/",
    "http://example.com:99999999/",
    "http://example.com:8o/",
    "http://example.com:-80/",
    "http://example.com:80:80/",
    "http://example.com/" + "a" * 10_000,
    "http://\u2460\u2461\u2466.0.0.1/\ud800",
    "",
    " ",
]

# Names that mean this machine once they are read as lookups read them.
DISGUISED = [
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://localhost.localdomain/",
    "http://127.0.0.1/",
    "http://127.0.0.1./",
    "https://127.0.0.1/",
    "http://127.0.0.1:8000/health",
    "http://127\u30020\u30020\u30021/",  # ideographic full stops
    "http://\uff11\uff12\uff17.0.0.1/",  # full-width digits
    "http://\u2460\u2461\u2466.0.0.1/",  # circled digits
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/",  # circled letters
    "http://127.0.0.1.nip.io/",
    "http://localtest.me/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:7f00:1]/",
    "  http://127.0.0.1/  ",
    "HTTP://127.0.0.1/",
    "http://127.0.0.1?@example.com/",
    "http://127.0.0.1#@example.com/",
]

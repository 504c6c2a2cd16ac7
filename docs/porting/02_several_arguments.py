"""A switch with several arguments, with keywords, and with none."""

from greenlet import getcurrent, greenlet


def connect(host, port=80, *, tls=False):
    scheme = "https" if tls else "http"
    main = getcurrent().parent
    path, times = main.switch("connected", f"{scheme}://{host}:{port}")
    for n in range(times):
        nothing = main.switch(f"GET {path} #{n}")
        assert nothing == ()
    options = main.switch("any options?")
    return sorted(options.items())


connection = greenlet(connect)
status, url = connection.switch("example.org", tls=True)
print(status, url)
print(connection.switch("/index", 2))
print(connection.switch())
print(connection.switch())
for name, value in connection.switch(retry=True, depth=3):
    print(name, value)

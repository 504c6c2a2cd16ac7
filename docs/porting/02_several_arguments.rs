//! A switch with several arguments, with keywords, and with none.

use greenlet::{Greenlet, getparent};

/// Arguments with names and defaults are a struct.
struct Connect {
    host: &'static str,
    port: u16,
    tls: bool,
}

impl Default for Connect {
    fn default() -> Connect {
        Connect {
            host: "localhost",
            port: 80,
            tls: false,
        }
    }
}

struct Options {
    depth: u32,
    retry: bool,
}

fn main() -> anyhow::Result<()> {
    let connection = Greenlet::new(|Connect { host, port, tls }: Connect| {
        let scheme = if tls { "https" } else { "http" };
        let main = getparent().expect("main");
        let (path, times): (&str, u32) = main.switch(("connected", format!("{scheme}://{host}:{port}")))?;
        for n in 0..times {
            main.switch::<()>(format!("GET {path} #{n}"))?;
        }
        let options: Options = main.switch("any options?".to_owned())?;
        Ok([
            ("depth", options.depth.to_string()),
            ("retry", title(options.retry)),
        ])
    });
    // Several arguments are a tuple, none is `()`.
    let (status, url): (&str, String) = connection.switch(Connect {
        host: "example.org",
        tls: true,
        ..Connect::default()
    })?;
    println!("{status} {url}");
    println!("{}", connection.switch::<String>(("/index", 2_u32))?);
    println!("{}", connection.switch::<String>(())?);
    println!("{}", connection.switch::<String>(())?);
    let options = Options {
        depth: 3,
        retry: true,
    };
    for (name, value) in connection.switch::<[(&str, String); 2]>(options)? {
        println!("{name} {value}");
    }
    Ok(())
}

/// Returns a `bool` as Python prints it.
fn title(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}

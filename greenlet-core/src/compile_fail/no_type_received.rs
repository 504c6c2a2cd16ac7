/*!
A switch says which type it receives. In edition 2024 the compiler would take `!` here.

```compile_fail,E0080,edition2024
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

fn main() -> anyhow::Result<()> {
    let child = Greenlet::new(|(): ()| Ok(()));
    child.switch(())?;
    Ok(())
}
```

```edition2024
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

fn main() -> anyhow::Result<()> {
    let child = Greenlet::new(|(): ()| Ok(()));
    let () = child.switch(())?;
    Ok(())
}
```

A throw, too.

```compile_fail,E0080,edition2024
# extern crate greenlet_core as greenlet;
use greenlet::{Greenlet, GreenletExit};

fn main() -> anyhow::Result<()> {
    let child = Greenlet::new(|(): ()| Ok(()));
    child.throw(GreenletExit::new())?;
    Ok(())
}
```
*/
// VA-3

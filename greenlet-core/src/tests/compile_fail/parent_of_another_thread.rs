/*!
A parent is of the greenlet's own thread: no handle of another gets there, borrowed or not.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
use greenlet::{Greenlet, getcurrent};

let main = getcurrent();
std::thread::spawn(move || {
    Greenlet::new(|(): ()| Ok(())).set_parent(&main)
});
```

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
use greenlet::{Greenlet, getcurrent};

let main = getcurrent();
std::thread::scope(|scope| {
    scope.spawn(|| Greenlet::builder().parent(&main).build(|(): ()| Ok(())));
});
```
*/
// PA-8, PA-9, CR-5

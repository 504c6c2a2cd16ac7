/*!
A greenlet cannot be switched to, thrown at or dropped by another thread, because no handle gets there.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
std::thread::spawn(move || child.switch::<()>(()));
```

Make it in the thread that runs it:

```
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let thread = std::thread::spawn(|| {
    let child = Greenlet::new(|(): ()| Ok(()));
    child.switch::<()>(())
});
thread.join().unwrap().unwrap();
```
*/
// TH-16, SW-32, TD-3, TD-6, XD-1, XD-2, XD-3

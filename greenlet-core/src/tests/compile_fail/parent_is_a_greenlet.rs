/*!
A parent is a greenlet, and nothing else.

```compile_fail,E0308
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::builder().parent(&"not a greenlet").build(|(): ()| Ok(()));
```

```compile_fail,E0308
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
child.set_parent(&"not a greenlet").unwrap();
```
*/
// CR-4, PA-5

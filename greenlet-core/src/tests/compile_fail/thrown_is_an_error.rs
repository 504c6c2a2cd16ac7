/*!
What is thrown is an error.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
child.throw::<()>("not an error");
```
*/
// TH-3

/*!
What is thrown is an error.

```compile_fail,E0277
use greenlet_core::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
child.throw::<()>("not an error");
```
*/
// TH-3

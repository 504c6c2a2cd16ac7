/*!
The main greenlet of one thread cannot be reached from another.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
let main = greenlet::getcurrent();
std::thread::scope(|scope| {
    scope.spawn(|| main.is_dead());
});
```
*/

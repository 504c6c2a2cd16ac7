/*!
The main greenlet of one thread cannot be reached from another.

```compile_fail,E0277
let main = greenlet_core::getcurrent();
std::thread::scope(|scope| {
    scope.spawn(|| main.is_dead());
});
```
*/

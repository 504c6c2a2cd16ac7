/*!
A greenlet is made with a function that takes one value.

```compile_fail,E0277
use greenlet_core::Greenlet;

Greenlet::new::<(), (), _>("not a function");
```

```compile_fail,E0593
use greenlet_core::Greenlet;

Greenlet::new(|first: i32, second: i32| Ok(first + second));
```

Several values are a tuple:

```
use greenlet_core::Greenlet;

let sum = Greenlet::new(|(first, second): (i32, i32)| Ok(first + second));
assert_eq!(sum.switch::<i32>((1, 2)).unwrap(), 3);
```
*/
// CR-6, CR-8, VP-6

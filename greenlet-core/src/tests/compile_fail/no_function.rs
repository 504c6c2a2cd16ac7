/*!
A greenlet is made with a function that takes one value.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

Greenlet::new::<(), (), _>("not a function");
```

```compile_fail,E0593
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

Greenlet::new(|first: i32, second: i32| Ok(first + second));
```

Several values are a tuple:

```
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let sum = Greenlet::new(|(first, second): (i32, i32)| Ok(first + second));
assert_eq!(sum.switch::<i32>((1, 2)).unwrap(), 3);
```
*/
// CR-6, CR-8, VP-6

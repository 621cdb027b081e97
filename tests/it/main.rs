//! The promises of `opta`, each tested on the real binary in a throw-away home.

//! Every device model and the buses they sit on

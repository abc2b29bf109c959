// Prompts for the embedded models, which know only such scenes.

const SCENES = [
  "top left red circle, top blue star, left pink cross, center yellow square, right green ring, bottom cyan diamond on gray",
  "top left purple diamond, top right orange circle, left green star, center blue ring, bottom yellow triangle, bottom right red square on white",
  "top left yellow star, top pink ring, top right cyan square, center red triangle, bottom left blue circle, bottom right green cross on black",
  "top orange cross, left cyan circle, center purple star, right red diamond, bottom left green square, bottom pink triangle on brown",
];
let next = 0;

/** Return whether there are examples for a model. */
export const known = (model) => model.startsWith("shapes-");

/** Return the next example. */
export const example = () => SCENES[next++ % SCENES.length];

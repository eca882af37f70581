"""The maths of diffusion: grids, noise, schedules, solvers, guidance, known frames and the one denoising loop."""

// Activations of vectors.
#pragma once

#include "functions.h"

namespace octavo {

// exp(x * x) * erfc(x) by Chebyshev's fit of Numerical Recipes: a relative error below 1.2e-7 for x >= 0.
INLINE vec complementary_error(vec x) {
    const vec t = 2.0f / (x + 2.0f);
    const float terms[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                           -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    vec p = broadcast(terms[0]);
    for (int i = 1; i < 10; ++i) p = fmadd(p, t, broadcast(terms[i]));
    return t * exponential(p - x * x);
}

template <Activation activation>
INLINE vec activate(vec x) {
    switch (activation) {
        case Activation::SILU: return x / (exponential(-x) + 1.0f);
        case Activation::QUICK_GELU: return x / (exponential(x * -1.702f) + 1.0f);
        case Activation::RELU: return larger(x, vec{});
        case Activation::SIGMOID: return 1.0f / (exponential(-x) + 1.0f);
        case Activation::TANH: return hyperbolic_tangent(x);
        case Activation::RELU_SQUARED: return larger(x, vec{}) * larger(x, vec{});
        case Activation::GELU: {
            const vec z = x * 0.70710678118654752f;
            const vec half = complementary_error(absolute(z)) * 0.5f;
            return x * select(x < 0.0f, half, 1.0f - half);
        }
        default: {
            // (1 + tanh(y)) / 2 is 1 / (1 + exp(-2 y)), which loses nothing where tanh is near -1.
            const vec inner = fmadd(x * x, broadcast(0.044715f), broadcast(1.0f)) * x * 0.7978845608028654f;
            return x / (exponential(inner * -2.0f) + 1.0f);
        }
    }
}

// f(std::integral_constant) with an activation that is only known when called.
template <typename Body>
INLINE auto with_activation(Activation activation, const Body& body) {
    using A = Activation;
    switch (activation) {
        case A::SILU: return body(std::integral_constant<A, A::SILU>());
        case A::GELU_TANH: return body(std::integral_constant<A, A::GELU_TANH>());
        case A::GELU: return body(std::integral_constant<A, A::GELU>());
        case A::QUICK_GELU: return body(std::integral_constant<A, A::QUICK_GELU>());
        case A::SIGMOID: return body(std::integral_constant<A, A::SIGMOID>());
        case A::TANH: return body(std::integral_constant<A, A::TANH>());
        case A::RELU: return body(std::integral_constant<A, A::RELU>());
        default: return body(std::integral_constant<A, A::RELU_SQUARED>());
    }
}

INLINE vec activate(Activation activation, vec x) {
    return with_activation(activation, [&](auto known) { return activate<decltype(known)::value>(x); });
}

// x itself where there is no activation.
INLINE vec activate_maybe(Activation activation, vec x) { return activation == Activation::NONE ? x : activate(activation, x); }

// log(1 + exp(x)), with log(1 + u) for u in [0, 1] as the series of 2 atanh(u / (2 + u)).
INLINE vec softplus(vec x) {
    const vec u = exponential(-absolute(x)), s = u / (u + 2.0f), square = s * s;
    vec p = broadcast(1.0f / 15);
    for (int odd = 13; odd > 0; odd -= 2) p = fmadd(p, square, broadcast(1.0f / static_cast<float>(odd)));
    return larger(x, vec{}) + s * p * 2.0f;
}

}  // namespace octavo
